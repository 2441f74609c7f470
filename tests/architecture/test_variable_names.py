"""A variable is named after its value. `found` and `given` say only how the value came."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SAY_NOTHING = {"found", "given", "told", "wanted"}
ROOMS = ("benchmarks", "jobs", "platform/warren", "serve/warren_serve")


@pytest.mark.parametrize("room", ROOMS)
def test_variables_are_named_after_their_values(repository: Path, room: str) -> None:
    files = sorted((repository / room).rglob("*.py"))
    assert files
    wrong = [
        f"{file.relative_to(repository)}:{line}: {name}"
        for file in files
        for name, line in _names(ast.parse(file.read_text()))
        if name in SAY_NOTHING
    ]
    assert not wrong, "name these after their values:\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    "code",
    [
        "found = 1",
        "found: int",
        "a, *found = b",
        "for found in a: pass",
        "[found for found in a]",
        "with a as found: pass",
        "if found := a: pass",
        "import a as found",
        "from a import b as found",
        "def f(found): pass",
        "def f(*, found=1): pass",
        "def f(*found): pass",
        "def found(): pass",
        "class C:\n  found: int",
        "self.found = 1",
        "try: pass\nexcept E as found: pass",
        "match a:\n  case [found]: pass",
        "match a:\n  case [*found]: pass",
        "match a:\n  case {**found}: pass",
    ],
)
def test_the_search_sees_every_way_to_give_a_name(code: str) -> None:
    assert [name for name, _ in _names(ast.parse(code)) if name in SAY_NOTHING] == ["found"]


def test_the_search_takes_words_and_foreign_names_for_what_they_are() -> None:
    code = "error.found\ncall(found=1)\nraise Error('nothing was found')\nprint(found)"
    assert not {name for name, _ in _names(ast.parse(code))} & SAY_NOTHING


def _names(module: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield every name that a module gives to a value, with its line."""
    for node in ast.walk(module):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name, node.lineno
            case ast.arg(arg=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name, node.lineno
            case ast.alias(asname=str(name)) | ast.ExceptHandler(name=str(name)):
                yield name, node.lineno
            case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)) | ast.MatchMapping(rest=str(name)):
                yield name, node.lineno
