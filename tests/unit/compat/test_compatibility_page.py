"""docs/compatibility.md lists exactly the ties that `warren.compat` holds, and the versions that CI installs."""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

_URL = re.compile(r"https://github\.com/[^\s)]+/\d+")
_CODE = re.compile(r"`([^`]+)`")


@dataclass(frozen=True)
class Row:
    """A line of the page's tables of ties."""

    names: list[str]
    where: list[str]
    upstream: str
    risk: str
    tests: list[str]


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "compatibility.md").read_text()


@pytest.fixture(scope="module")
def rows(page: str) -> list[Row]:
    ties = page.partition("## Ties")[2]
    cells = [line.strip("|").split(" | ") for line in ties.splitlines() if line.startswith("| `")]
    return [Row(_CODE.findall(c[0]), _CODE.findall(c[2]), c[3], c[4], _CODE.findall(c[5])) for c in cells]


@pytest.fixture(scope="module")
def ties(repository: Path) -> dict[str, str]:
    """The docstring of every public function, class and constant of the room."""
    docstrings: dict[str, str] = {}
    for path in (repository / "platform/warren/compat").glob("*.py"):
        body = ast.parse(path.read_text()).body
        for number, node in enumerate(body):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                docstrings[f"{path.stem}.{node.name}"] = ast.get_docstring(node) or ""
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                after = body[number + 1] if number + 1 < len(body) else None
                text = after.value if isinstance(after, ast.Expr) else None
                value = text.value if isinstance(text, ast.Constant) else ""
                docstrings[f"{path.stem}.{node.targets[0].id}"] = str(value)
    return {name: text for name, text in docstrings.items() if not name.partition(".")[2].startswith("_")}


def test_every_tie_is_on_the_page_once(rows: list[Row], ties: dict[str, str]) -> None:
    listed = [name for row in rows for name in row.names]
    assert sorted(listed) == sorted(ties)


def test_every_tie_says_why_where_and_what_to_do(rows: list[Row], ties: dict[str, str]) -> None:
    for row in rows:
        texts = "\n".join(ties[name] for name in row.names)
        for heading in ("Why:", "Upstream:", "If it breaks:"):
            assert heading in texts, f"{row.names} does not say {heading}"
        assert set(_URL.findall(row.upstream)) == set(_URL.findall(texts)), row.names
        assert row.risk in ("high", "medium", "low"), row.names


def test_the_tests_on_the_page_are_there(rows: list[Row]) -> None:
    for row in rows:
        assert row.tests, row.names
        for test in row.tests:
            file, _, name = test.partition("::")
            assert f"def {name}(" in (Path(__file__).parent / file).read_text(), test


def test_the_page_names_who_uses_a_tie(rows: list[Row], repository: Path) -> None:
    users: dict[str, set[str]] = {}
    for root, shown_from in (("platform/warren", "platform/warren"), ("serve", "serve"), ("benchmarks", ".")):
        for path in (repository / root).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("warren.compat."):
                    for alias in node.names:
                        tie = f"{(node.module or '').removeprefix('warren.compat.')}.{alias.name}"
                        users.setdefault(tie, set()).add(str(path.relative_to(repository / shown_from)))
    for row in rows:
        expected = {user for name in row.names for user in users.get(name, set())}
        assert set(row.where) == (expected or {f"compat/{row.names[0].partition('.')[0]}.py"}), row.names


def test_the_versions_are_those_of_the_project(page: str, repository: Path) -> None:
    constraints = (repository / "constraints.txt").read_text().splitlines()
    project = (repository / "pyproject.toml").read_text()
    lines = re.findall(r"^\| ([\w.]+) \| `([^`]+)` \| ([\d.]+) \|$", page, re.MULTILINE)
    assert {name for name, *_ in lines} >= {"ray", "deepspeed", "torch", "transformers"}
    for name, allowed, tested in lines:
        assert f"{name}=={tested}" in constraints, name
        assert re.search(rf'"{name}(\[[a-z,]+\])?{re.escape(allowed)}"', project), f"{name} {allowed}"
        assert "<" in allowed, f"{name} has no upper bound"
