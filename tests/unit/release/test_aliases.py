"""Aliases keep a history that no move is missing from, and go back the way they came."""

from pathlib import Path

import pytest

from releases import NAME, registry_with
from warren.errors import ConflictError, ReleaseError
from warren.release import Registry, aliases, move_alias, read_alias, read_history
from warren.release.aliases import AliasMove
from warren.release.removal_marks import mark_for_removal
from warren.storage import Location
from warren.storage.files import FileStore


@pytest.fixture
def root(tmp_path: Path) -> Location:
    return Location.parse(str(tmp_path / "store"))


@pytest.fixture
def registry(root: Location, tmp_path: Path) -> Registry:
    return registry_with(root, tmp_path, "v1", "v2", "v3")


def facts_of(moves: list[AliasMove]) -> list[tuple[int, str | None, str, str]]:
    return [(move.number, move.before, move.after, move.why) for move in moves]


def test_a_move_says_who_when_from_to_and_why(registry: Registry) -> None:
    registry.move("stable", "v1", expected=None, who="ada", why="the first")
    registry.move("stable", "v2", expected="v1", who="bob", why="better")
    first, second = registry.history("stable")
    assert (first.who, first.before, first.after, first.why) == ("ada", None, "v1", "the first")
    assert (second.who, second.before, second.after, second.number) == ("bob", "v1", "v2", 2)
    assert abs(second.when - first.when) < 60
    assert registry.history("candidate") == []
    assert registry.aliases() == {"stable": "v2"}


def test_an_alias_that_an_earlier_version_of_warren_wrote_is_read_and_goes_on(registry: Registry) -> None:
    (registry.folder / "aliases" / "stable.json").put_json({"version": "v1"})
    assert registry.alias("stable") == "v1"
    assert registry.history("stable") == []
    registry.move("stable", "v2", expected="v1", why="better")
    assert facts_of(registry.history("stable")) == [(1, "v1", "v2", "better")]
    assert (registry.folder / "aliases" / "stable.json").read_json()["version"] == "v2", "which it reads in turn"


def test_old_moves_go_into_files_that_nobody_changes_and_none_is_lost(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aliases, "_BLOCK", 3)
    present = None
    for number in range(20):
        version = ("v1", "v2")[number % 2]
        registry.move("stable", version, present, why=str(number))
        present = version
    assert [(move.number, move.why) for move in registry.history("stable")] == [(n + 1, str(n)) for n in range(20)]
    assert len((registry.folder / "aliases" / "stable.json").read_json()["history"]) <= 6
    blocks = (registry.folder / "aliases" / "history").list()
    assert [block.name for block in blocks] == [f"stable-{n:08d}.json" for n in (1, 4, 7, 10, 13)]


def test_a_move_from_where_the_alias_is_not_changes_nothing(registry: Registry) -> None:
    registry.move("stable", "v1", expected=None)
    for expected in (None, "v2"):
        with pytest.raises(ConflictError, match=r"names v1, not .*another job moved it meanwhile"):
            registry.move("stable", "v3", expected)
    with pytest.raises(ReleaseError, match="no release at"):
        registry.move("stable", "v9", expected="v1")
    assert [move.after for move in registry.history("stable")] == ["v1"]


def test_a_move_whose_answer_was_lost_counts_if_it_was_written(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Storage wrote it, the answer never came, and somebody else moved on before the second attempt."""
    registry.move("stable", "v1", expected=None)
    replace = FileStore.replace

    def written_but_unanswered(store: FileStore, key: str, data: bytes, tag: str) -> None:
        monkeypatch.undo()
        replace(store, key, data, tag)
        move_alias(registry.root, NAME, "stable", "v3", "v2")
        raise ConflictError("changed since it was read")

    monkeypatch.setattr(FileStore, "replace", written_but_unanswered)
    assert registry.move("stable", "v2", expected="v1").after == "v2"
    assert [move.after for move in registry.history("stable")] == ["v1", "v2", "v3"]


def test_rolling_back_twice_goes_back_twice(registry: Registry) -> None:
    for before, after in ((None, "v1"), ("v1", "v2"), ("v2", "v3")):
        registry.move("stable", after, before)
    assert registry.rollback("stable", "worse", who="ada").after == "v2"
    assert registry.rollback("stable", "still worse").after == "v1"
    registry.move("stable", "v3", "v1")
    assert registry.rollback("stable", "no").after == "v1"
    with pytest.raises(ReleaseError, match="no earlier version to go back to: promote"):
        registry.rollback("stable", "further")
    assert read_alias(registry.root, NAME, "stable") == "v1"
    assert [move.kind for move in read_history(registry.root, NAME, "stable")][3:] == [
        "rollback",
        "rollback",
        "move",
        "rollback",
    ]


def test_an_alias_that_was_never_set_cannot_be_rolled_back(registry: Registry) -> None:
    with pytest.raises(ReleaseError, match="no earlier version"):
        registry.rollback("stable", "why not")


def test_an_alias_never_names_what_is_being_removed(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.move("stable", "v1", expected=None)
    mark_for_removal(registry.root, NAME, "v2", "gc")
    with pytest.raises(ReleaseError, match="v2 is being removed"):
        registry.move("stable", "v2", expected="v1")
    assert [move.after for move in registry.history("stable")] == ["v1"]

    swap = aliases._write

    def marked_meanwhile(*arguments: object) -> None:
        monkeypatch.undo()
        swap(*arguments)  # type: ignore[arg-type]
        mark_for_removal(registry.root, NAME, "v3", "gc")

    monkeypatch.setattr(aliases, "_write", marked_meanwhile)
    with pytest.raises(ReleaseError, match="v3 is being removed"):
        registry.move("stable", "v3", expected="v1")
    assert registry.alias("stable") == "v1"
    assert [move.after for move in registry.history("stable")] == ["v1", "v3", "v1"]
