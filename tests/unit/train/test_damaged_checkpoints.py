"""A damaged newest checkpoint: the run goes on from the newest that is whole, and says so."""

from collections.abc import Callable
from pathlib import Path

import pytest

from warren.errors import CheckpointError
from warren.storage import Location
from warren.train.checkpoint import CheckpointManifest
from warren.train.damaged_checkpoints import newest_intact
from warren.train.run import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(Location.parse(str(tmp_path / "runs/r")))
    for step in (4, 8, 12):
        local = tmp_path / f"local-{step}"
        (local / "state").mkdir(parents=True)
        (local / "state/rank-0.pt").write_text(f"state at {step}")
        files = tuple(run.checkpoints.upload(step, "a", local))
        run.checkpoints.commit(CheckpointManifest(step, 1, 2, "f", files, {}))
    return run


def file_of(run: Run, step: int, name: str = "a/state/rank-0.pt") -> Path:
    return Path(run.checkpoints.at(step).uri, name)


DAMAGES: list[tuple[Callable[[Run, int], object], str]] = [
    (lambda run, step: file_of(run, step).unlink(), r"rank-0\.pt is missing"),
    (lambda run, step: file_of(run, step).write_text("cut"), r"rank-0\.pt has 3 bytes, its manifest says 11"),
    (lambda run, step: file_of(run, step, "manifest.json").write_text('{"step": '), r"manifest\.json is damaged"),
    (lambda run, step: file_of(run, step, "manifest.json").write_text('{"files": []}'), r"manifest\.json is damaged"),
]


@pytest.mark.parametrize(("damage", "seen"), DAMAGES)
def test_a_damaged_checkpoint_is_left_for_the_newest_that_is_whole(
    run: Run, damage: Callable[[Run, int], object], seen: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(run.checkpoints.at(8).uri, "a/state/rank-0.pt").write_text("cut")
    damage(run, 12)
    found = newest_intact(run)
    assert found is not None
    assert found.step == 4
    said = capsys.readouterr().err
    assert f"checkpoint at step 12 is damaged ({run.checkpoints.at(12)}" in said
    assert "step 8 is damaged" in said
    assert said.count("going on from the one at step 4") == 2
    assert run.checkpoints.steps() == [4]  # so every reader finds the same newest one
    run.checkpoints.commit(CheckpointManifest(12, 1, 2, "f", (), {}))  # and the run may come there again
    run.checkpoints.prune(keep=1)
    assert not run.checkpoints.at(8).list()


def test_damage_that_only_the_bytes_show_is_what_workers_say(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    found = newest_intact(run, "rank-0.pt: its SHA-256 is another")
    assert found is not None
    assert found.step == 8
    assert "step 12 is damaged (rank-0.pt: its SHA-256 is another); going on" in capsys.readouterr().err
    manifest = run.checkpoints.at(12) / "manifest.damaged.json"
    Path(manifest.uri).rename(Path(manifest.uri).with_name("manifest.json"))  # restored, as the warning says
    assert [run.checkpoints.steps(), newest_intact(run)] == [[4, 8, 12], run.checkpoints.read(12)]


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew_by_itself(run: Run) -> None:
    for step in (4, 8, 12):
        file_of(run, step).unlink()
    with pytest.raises(CheckpointError, match=r"no checkpoint that is whole \(step 12: .*; step 4: .*restore.*--run"):
        newest_intact(run)
    assert run.checkpoints.steps() == [4, 8, 12]


def test_a_run_without_checkpoints_has_none(tmp_path: Path) -> None:
    assert newest_intact(Run(Location.parse(str(tmp_path / "runs/new")))) is None
