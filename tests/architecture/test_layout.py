"""The house rules that a script can see."""

import ast
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

MAX_LINES = 400
TOP_LEVEL = {"platform", "jobs", "serve", "infra", "tests", "docs", "benchmarks"}
VAGUE = {"utils", "util", "helpers", "common", "manager", "misc"}


def tracked(repository: Path, pattern: str = "*.py") -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", pattern],
        cwd=repository,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return [repository / name for name in listed if (repository / name).is_file()]


def test_the_folders_are_those_of_the_design(repository: Path) -> None:
    found = {path.relative_to(repository).parts[0] for path in tracked(repository)}
    assert found <= TOP_LEVEL


def test_platform_is_a_source_root_and_no_package(repository: Path) -> None:
    assert {path.name for path in (repository / "platform").iterdir() if path.name != "__pycache__"} == {"warren"}


def test_nothing_shadows_the_standard_library(repository: Path) -> None:
    roots = [repository / "platform", repository / "serve", repository / "jobs"]
    importable = {p.stem if p.suffix == ".py" else p.name for root in roots for p in root.iterdir()}
    packages = {p.name for p in repository.iterdir() if (p / "__init__.py").is_file()}
    assert not (importable | packages) & set(sys.stdlib_module_names)


def test_no_file_is_too_long_and_no_name_is_vague(repository: Path) -> None:
    for path in tracked(repository):
        assert len(path.read_text().splitlines()) <= MAX_LINES, path
        assert path.stem not in VAGUE, path


def test_jobs_are_glue(repository: Path) -> None:
    for path in (repository / "jobs").glob("*.py"):
        body = [line for line in path.read_text().splitlines() if line.strip()]
        assert len(body) <= 40, path


def test_every_module_says_what_it_is(repository: Path) -> None:
    for root in ("platform/warren", "serve/warren_serve"):
        for path in (repository / root).rglob("*.py"):
            assert ast.get_docstring(ast.parse(path.read_text())), path


def test_no_file_names_a_path_of_one_machine(repository: Path) -> None:
    wrong = [p for p in tracked(repository, "*") if b"/" + b"work/" in p.read_bytes()]
    assert not wrong


def test_platform_is_the_standard_library_when_the_repository_is_on_the_path(repository: Path) -> None:
    code = "import platform; print(platform.__file__); platform.system()"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=repository,
        env={"PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    assert Path(found.stdout.strip()).parent == Path(sysconfig.get_paths()["stdlib"])


def test_who_only_asks_an_engine_imports_no_torch() -> None:
    """Replicas are there seconds sooner for it, and hundreds of MiB smaller."""
    code = "import sys, warren_serve.app; print(sorted({'torch', 'transformers', 'numba'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("command", [["ruff", "format", "--check", "."], ["ruff", "check", "."], ["lint-imports"]])
def test_the_checks_pass(repository: Path, command: list[str]) -> None:
    program = Path(sys.executable).parent / command[0]
    if not program.is_file():
        pytest.skip(f"{command[0]} is not installed here: pip install '.[dev]'")
    found = subprocess.run([program, *command[1:]], cwd=repository, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_a_public_class_name_stands_for_one_thing(repository: Path) -> None:
    places: dict[str, list[str]] = {}
    for root in ("platform/warren", "serve/warren_serve"):
        for path in (repository / root).rglob("*.py"):
            for name in _public_types(ast.parse(path.read_text())):
                places.setdefault(name, []).append(str(path.relative_to(repository)))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def _public_types(module: ast.Module) -> set[str]:
    """Return the names of a module's public classes and type aliases; type variables are no types of their own."""
    classes = {node.name for node in module.body if isinstance(node, ast.ClassDef)}
    assigned = [node for node in module.body if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)]
    aliases = {
        target.id
        for node in assigned
        if isinstance(target := node.targets[0], ast.Name) and not _is_type_variable(node.value)
    }
    return {name for name in classes | aliases if name[0].isupper() and not name.isupper()}


def _is_type_variable(value: ast.expr) -> bool:
    return isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "TypeVar"
