"""Garbage collection removes what nothing needs, and nothing else, also while others write."""

import time
from pathlib import Path

import pytest

from releases import NAME, publish_text, registry_with
from warren.errors import ReleaseError
from warren.release import ParentModel, Registry, garbage_collection, gc, plan_gc, write_deployment
from warren.release.removal_marks import mark_for_removal, removal_mark
from warren.storage import Location


@pytest.fixture
def root(tmp_path: Path) -> Location:
    return Location.parse(str(tmp_path / "store"))


def promote(registry: Registry, *versions: str) -> None:
    for version in versions:
        registry.move("stable", version, registry.alias("stable"))


def test_what_is_needed_stays_and_the_plan_says_why(root: Location, tmp_path: Path) -> None:
    registry = registry_with(root, tmp_path, "old", "was", "now", "next", "pinned", "served", "unused")
    promote(registry, "old", "was", "now")
    registry.move("candidate", "next", expected=None)
    registry.pin("pinned", "an audit")
    write_deployment(root, NAME, "chat", ["served"])
    write_deployment(root, NAME, "release", ["served"])  # its marker is called like a manifest
    plan = plan_gc(registry, window=1, min_age_s=0)
    assert plan.removed == ("old", "unused")
    assert plan.kept == {
        "now": ("stable",),
        "was": ("was stable",),
        "next": ("candidate",),
        "pinned": ("pinned",),
        "served": ("runs in chat", "runs in release"),
    }
    assert plan.num_bytes == sum(2 * len(version) for version in plan.removed)
    assert registry.versions() == sorted(["old", "was", "now", "next", "pinned", "served", "unused"]), "only a plan"
    assert gc(registry, plan, window=1) == ["old", "unused"]
    assert registry.versions() == sorted(["was", "now", "next", "pinned", "served"])
    for version in ("old", "unused"):
        assert (registry.folder / version).list() == []
    assert (registry.folder / "removals").list() == []
    assert gc(registry, plan_gc(registry, window=1, min_age_s=0), window=1) == []


def test_young_releases_stay_and_those_of_a_clock_that_runs_ahead(
    root: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = registry_with(root, tmp_path, "v1", "v2")
    promote(registry, "v1")
    assert plan_gc(registry).removed == ()
    now = time.time()
    monkeypatch.setattr(garbage_collection.time, "time", lambda: now + 2 * 24 * 3600)
    assert plan_gc(registry).removed == ("v2",)
    monkeypatch.setattr(garbage_collection.time, "time", lambda: now - 365 * 24 * 3600)
    assert plan_gc(registry).kept["v2"] == ("young",)


def test_nothing_is_removed_where_no_alias_says_what_matters(root: Location, tmp_path: Path) -> None:
    registry = registry_with(root, tmp_path, "v1")
    assert plan_gc(registry, min_age_s=0).kept == {"v1": ("no alias is set",)}


def test_what_a_release_was_made_from_stays_as_long_as_the_release(root: Location, tmp_path: Path) -> None:
    registry = registry_with(root, tmp_path, "base", "aside", "other")
    folder = registry.folder
    publish_text(root, tmp_path, "child", [ParentModel("origin", model=f"{folder}/base")])
    publish_text(root, tmp_path, "soup", [ParentModel("average", "run-child", 3), ParentModel("average", "gone", 3)])
    publish_text(root, tmp_path, "foreign", [ParentModel("origin", model=f"{folder}/aside")], name="elsewhere")
    promote(registry, "soup")
    plan = plan_gc(registry, min_age_s=0)
    assert plan.removed == ("other",)
    assert plan.kept["child"] == ("parent of soup",)
    assert plan.kept["base"] == ("parent of child",)
    assert plan.kept["aside"] == ("parent of elsewhere/foreign",)

    promote(registry, "other")
    plan = plan_gc(registry, window=0, min_age_s=0)
    assert plan.removed == ("soup", "child", "base"), "children first, whatever is interrupted"
    assert gc(registry, plan, window=0) == ["soup", "child", "base"]


def test_a_removal_that_is_interrupted_leaves_no_release_and_is_finished_later(
    root: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = registry_with(root, tmp_path, "v1", "v2")
    promote(registry, "v1")
    deleted: list[str] = []

    def killed(_: object, key: str) -> None:
        Path(key).unlink()
        deleted.append(Path(key).name)
        raise KeyboardInterrupt

    monkeypatch.setattr("warren.storage.files.FileStore.delete", killed)
    with pytest.raises(KeyboardInterrupt):
        gc(registry, plan_gc(registry, min_age_s=0))
    monkeypatch.undo()
    assert deleted == ["release.json"]
    assert registry.versions() == ["v1"]
    with pytest.raises(ReleaseError, match="is being removed"):
        publish_text(root, tmp_path, "v2")

    assert plan_gc(registry, min_age_s=0).interrupted == (), "another collection may still be at it"
    mark = removal_mark(root, NAME, "v2")
    mark.put_json({"who": "gc", "when": int(time.time()) - 7200})
    assert gc(registry, plan_gc(registry, min_age_s=0)) == ["v2"]
    assert (registry.folder / "v2").list() == []
    publish_text(root, tmp_path, "v2")
    assert registry.versions() == ["v1", "v2"]


def test_what_is_needed_since_the_plan_was_made_stays(root: Location, tmp_path: Path) -> None:
    registry = registry_with(root, tmp_path, "v1", "v2", "v3", "v4", "v5")
    promote(registry, "v1")
    plan = plan_gc(registry, min_age_s=0)
    assert set(plan.removed) == {"v2", "v3", "v4", "v5"}
    promote(registry, "v2")
    registry.pin("v3", "an audit")
    write_deployment(root, NAME, "chat", ["v4"])
    publish_text(root, tmp_path, "v6", [ParentModel("origin", model=f"{registry.folder}/v5")])
    assert gc(registry, plan) == []
    assert len(registry.versions()) == 6
    assert (registry.folder / "removals").list() == []


def test_an_old_mark_on_a_release_that_is_needed_is_taken_away(root: Location, tmp_path: Path) -> None:
    """A collection was killed between its mark and its second look."""
    registry = registry_with(root, tmp_path, "v1", "v2")
    promote(registry, "v1")
    removal_mark(root, NAME, "v1").put_json({"who": "gc", "when": 0})
    plan = plan_gc(registry, min_age_s=0)
    assert plan.interrupted == ("v1",)
    assert gc(registry, plan) == ["v2"]
    assert registry.versions() == ["v1"]
    assert (registry.folder / "removals").list() == []


def test_of_two_collections_one_removes_a_version(root: Location, tmp_path: Path) -> None:
    registry = registry_with(root, tmp_path, "v1", "v2")
    promote(registry, "v1")
    plan = plan_gc(registry, min_age_s=0)
    assert mark_for_removal(root, NAME, "v2", "the other")
    assert gc(registry, plan) == []
    assert registry.versions() == ["v1", "v2"]


def test_files_of_a_publisher_that_is_at_work_are_left_alone(root: Location, tmp_path: Path) -> None:
    registry = registry_with(root, tmp_path, "v1")
    promote(registry, "v1")
    begun = registry.folder / "v2" / "model.safetensors"
    begun.put_bytes(b"half")
    gc(registry, plan_gc(registry, min_age_s=0))
    assert begun.read_bytes() == b"half"
