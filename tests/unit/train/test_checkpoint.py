"""Invariant 6: a checkpoint exists once its manifest does, and not before."""

from pathlib import Path

import pytest

from warren.errors import CheckpointError, StorageError, UnsafePathError
from warren.storage import Location
from warren.train.checkpoint import CheckpointManifest, Checkpoints


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(Location.parse(str(tmp_path / "store/checkpoints")))


def local_files(tmp_path: Path, text: str) -> Path:
    folder = tmp_path / f"local-{text}"
    (folder / "state").mkdir(parents=True)
    (folder / "model").mkdir()
    (folder / "state/rank-0.pt").write_text(text)
    (folder / "model/config.json").write_text(text)
    return folder


def commit(checkpoints: Checkpoints, tmp_path: Path, step: int, attempt: str = "a1") -> CheckpointManifest:
    files = tuple(checkpoints.upload(step, attempt, local_files(tmp_path, f"{step}{attempt}")))
    manifest = CheckpointManifest(step, 1, 2, "f", files, {"stage": "pretrain"})
    checkpoints.commit(manifest)
    return manifest


def test_an_upload_without_a_manifest_is_invisible(checkpoints: Checkpoints, tmp_path: Path) -> None:
    commit(checkpoints, tmp_path, 10)
    checkpoints.upload(20, "a1", local_files(tmp_path, "crashed"))
    assert checkpoints.steps() == [10]
    latest = checkpoints.latest()
    assert latest is not None
    assert latest.step == 10


def test_a_new_attempt_does_not_touch_what_a_crashed_one_left(checkpoints: Checkpoints, tmp_path: Path) -> None:
    checkpoints.upload(10, "a1", local_files(tmp_path, "crashed"))
    manifest = commit(checkpoints, tmp_path, 10, attempt="a2")
    assert checkpoints.read(10) == manifest
    assert all(entry.path.startswith("a2/") for entry in manifest.files)
    assert [e.path for e in manifest.below("model")] == ["a2/model/config.json"]


def test_two_jobs_cannot_commit_the_same_step(checkpoints: Checkpoints, tmp_path: Path) -> None:
    commit(checkpoints, tmp_path, 10, "a1")
    with pytest.raises(CheckpointError, match="two jobs train the same run"):
        commit(checkpoints, tmp_path, 10, "a2")


def test_pruning_keeps_the_newest(checkpoints: Checkpoints, tmp_path: Path) -> None:
    for step in (10, 20, 30):
        commit(checkpoints, tmp_path, step)
    checkpoints.prune(keep=2)
    assert checkpoints.steps() == [20, 30]
    assert not (checkpoints.at(10)).list()


def test_a_missing_step_names_those_there_are(checkpoints: Checkpoints, tmp_path: Path) -> None:
    commit(checkpoints, tmp_path, 10)
    with pytest.raises(CheckpointError, match="no complete checkpoint at step 11; complete: 10"):
        checkpoints.read(11)


def test_an_upload_that_arrives_short_is_an_error(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("warren.storage.files.FileStore.size", lambda *_: 1)
    with pytest.raises(StorageError, match="did not arrive whole"):
        commit(checkpoints, tmp_path, 10)
    assert checkpoints.steps() == []


def test_a_manifest_that_names_files_elsewhere_is_refused(checkpoints: Checkpoints, tmp_path: Path) -> None:
    commit(checkpoints, tmp_path, 10)
    target = checkpoints.at(10) / "manifest.json"
    value = target.read_json()
    value["files"][0]["path"] = "short"
    target.put_json(value)
    assert len(checkpoints.read(10).below("state")) == 1
    value["files"][0]["path"] = "a1/state/../../../outside"
    target.put_json(value)
    with pytest.raises(UnsafePathError):
        checkpoints.latest()
