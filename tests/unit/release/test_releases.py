"""Invariant 8: releases are immutable, aliases move by compare-and-swap, and the gate holds."""

import shutil
import tempfile
from pathlib import Path

import pytest

from warren.errors import ConfigError, ConflictError, CorruptDataError, ReleaseError, UnsafePathError
from warren.release import (
    Lineage,
    fetch_release,
    move_alias,
    publish,
    read_alias,
    release_folder,
    resolve_release,
)
from warren.storage import Location, StoredFiles, upload_verified


@pytest.fixture
def root(tmp_path: Path) -> Location:
    return Location.parse(str(tmp_path / "store"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test a cache of its own."""
    monkeypatch.setenv("WARREN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def stored_model(root: Location, tmp_path: Path, text: str) -> StoredFiles:
    folder, local = root / f"checkpoint-{text}/a1/model", tmp_path / text
    local.write_text(text)
    paths = ("config.json", "model.safetensors")
    return StoredFiles(folder, tuple(upload_verified(local, folder, path) for path in paths))


def release(root: Location, tmp_path: Path, version: str, text: str) -> Location:
    model = stored_model(root, tmp_path, text)
    return publish(root, "demo", version, model, Lineage(run="r", step=3), {"test/exact_match": 0.8})


def test_a_release_comes_back_whole_with_its_lineage(root: Location, tmp_path: Path) -> None:
    folder = release(root, tmp_path, "v1", "weights")
    fetched = fetch_release(folder.uri, tmp_path / "local")
    assert (tmp_path / "local/config.json").read_text() == "weights"
    assert (fetched.version, fetched.lineage.step, fetched.scores) == ("v1", 3, {"test/exact_match": 0.8})


def test_publishing_again_changes_nothing_and_other_files_are_refused(root: Location, tmp_path: Path) -> None:
    first = release(root, tmp_path, "v1", "weights")
    written = (first / "release.json").read_bytes()
    release(root, tmp_path, "v1", "weights")
    assert (first / "release.json").read_bytes() == written
    with pytest.raises(ReleaseError, match="releases never change"):
        release(root, tmp_path, "v1", "other")


def test_a_release_needs_no_disk_of_the_job_and_lives_on_without_its_checkpoint(
    root: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = stored_model(root, tmp_path, "weights")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "no such folder"))
    folder = publish(root, "demo", "v1", model, Lineage(), {})
    monkeypatch.undo()
    for entry in model.files:
        Path(model.folder.uri, entry.path).write_text("changed")
    fetch_release(folder.uri, tmp_path / "local")
    assert (tmp_path / "local/model.safetensors").read_text() == "weights"


def test_a_checkpoint_that_is_damaged_is_not_published(root: Location, tmp_path: Path) -> None:
    model = stored_model(root, tmp_path, "weights")
    Path(model.folder.uri, "model.safetensors").write_text("weighty")
    with pytest.raises(CorruptDataError, match="damaged"):
        publish(root, "demo", "v1", model, Lineage(), {})
    with pytest.raises(ReleaseError, match="no release at"):
        fetch_release(release_folder(root, "demo", "v1").uri, tmp_path / "local")


def test_a_machine_downloads_a_release_once_and_a_copy_outlives_the_cache(
    root: Location, tmp_path: Path, cache: Path
) -> None:
    folder = release(root, tmp_path, "v1", "weights")
    fetch_release(folder.uri, tmp_path / "one")
    for path in Path(folder.uri).iterdir():
        if path.name != "release.json":
            path.unlink()
    fetch_release(folder.uri, tmp_path / "two")
    shutil.rmtree(cache)
    for name in ("one", "two"):
        assert (tmp_path / name / "model.safetensors").read_text() == "weights"


def test_without_weights_only_the_small_files_are_fetched(root: Location, tmp_path: Path, cache: Path) -> None:
    folder = release(root, tmp_path, "v1", "weights")
    fetch_release(folder.uri, tmp_path / "local", weights=False)
    assert [path.name for path in (tmp_path / "local").iterdir()] == ["config.json"]
    assert not cache.exists()


def test_damage_is_found_when_it_is_fetched(root: Location, tmp_path: Path) -> None:
    folder = release(root, tmp_path, "v1", "weights")
    (Path(folder.uri) / "config.json").write_text("weighty")
    with pytest.raises(CorruptDataError):
        fetch_release(folder.uri, tmp_path / "local")


@pytest.mark.parametrize("path", ["../outside", "/tmp/outside", "a/../../outside"])
def test_a_release_that_names_files_elsewhere_writes_nothing(root: Location, tmp_path: Path, path: str) -> None:
    folder = release(root, tmp_path, "v1", "weights")
    value = (folder / "release.json").read_json()
    value["files"][0]["path"] = path
    (folder / "release.json").put_json(value)
    with pytest.raises(UnsafePathError, match="inside its own folder"):
        fetch_release(folder.uri, tmp_path / "local")
    assert not (tmp_path / "local").exists()


def test_an_incomplete_release_does_not_exist(root: Location, tmp_path: Path) -> None:
    folder = release(root, tmp_path, "v1", "weights")
    (Path(folder.uri) / "release.json").unlink()
    with pytest.raises(ReleaseError, match="no release at"):
        fetch_release(folder.uri, tmp_path / "local")
    with pytest.raises(ReleaseError):
        move_alias(root, "demo", "stable", "v1", expected=None)


def test_aliases_move_only_from_where_they_were_seen(root: Location, tmp_path: Path) -> None:
    release(root, tmp_path, "v1", "one")
    release(root, tmp_path, "v2", "two")
    assert read_alias(root, "demo", "stable") is None
    move_alias(root, "demo", "stable", "v1", expected=None)
    with pytest.raises(ConflictError):
        move_alias(root, "demo", "stable", "v2", expected=None)
    move_alias(root, "demo", "stable", "v2", expected="v1")
    with pytest.raises(ConflictError):
        move_alias(root, "demo", "stable", "v1", expected="v1")
    assert read_alias(root, "demo", "stable") == "v2"


def test_an_alias_resolves_to_its_version(root: Location, tmp_path: Path) -> None:
    folder = release(root, tmp_path, "v1", "one")
    alias = release_folder(root, "demo", "stable").uri
    with pytest.raises(ReleaseError, match="was ever stable"):
        resolve_release(alias)
    move_alias(root, "demo", "stable", "v1", expected=None)
    assert resolve_release(alias) == folder.uri
    assert resolve_release(folder.uri) == folder.uri


def test_no_model_is_copied_over_another_that_is_being_published(root: Location, tmp_path: Path) -> None:
    """Two runs of one name and step: the first has copied its files, and is not complete yet."""
    folder = release(root, tmp_path, "v1", "weights")
    written = (folder / "release.json").read_json()
    (Path(folder.uri) / "release.json").unlink()
    with pytest.raises(ReleaseError, match="releases never change"):
        release(root, tmp_path, "v1", "other")
    assert Path(folder.uri, "model.safetensors").read_text() == "weights"
    release(root, tmp_path, "v1", "weights")
    assert (folder / "release.json").read_json()["files"] == written["files"]


@pytest.mark.parametrize("version", ["stable", "candidate", "aliases", "pins", "deployments", "removals"])
def test_a_version_cannot_be_called_like_an_alias_or_a_folder(root: Location, tmp_path: Path, version: str) -> None:
    with pytest.raises(ConfigError, match="choose another"):
        release(root, tmp_path, version, "one")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": "demo"}', '{"files": 3}'])
def test_a_damaged_release_is_one_line(root: Location, tmp_path: Path, text: str) -> None:
    folder = release(root, tmp_path, "v1", "one")
    (folder / "release.json").put_bytes(text.encode())
    with pytest.raises(ReleaseError, match=r"release\.json is damaged.*restore it"):
        fetch_release(folder.uri, tmp_path / "local")


def test_a_release_is_named_below_the_storage(root: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = release(root, tmp_path, "v1", "one")
    move_alias(root, "demo", "stable", "v1", expected=None)
    monkeypatch.setenv("WARREN_STORAGE", root.uri)
    assert {resolve_release(text) for text in ("demo/stable", "demo/v1", " demo/stable/ ")} == {folder.uri}
    monkeypatch.setenv("WARREN_STORAGE", "s3://bucket/warren")
    assert resolve_release("demo/v1") == "s3://bucket/warren/releases/demo/v1"
    monkeypatch.delenv("WARREN_STORAGE")
    with pytest.raises(ConfigError, match="WARREN_STORAGE is not set"):
        resolve_release("demo/stable")
    # Neither a URI nor a path is below the storage, however short it is.
    monkeypatch.chdir(tmp_path)
    for text in ("s3://demo/v1", str(tmp_path / "v1"), "./demo/v1", "../v1", "file:///demo/v1", "a/b/v1"):
        assert resolve_release(text) == Location.parse(text).uri
