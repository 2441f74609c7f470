"""The loop in plain processes: killed, resumed, hung, short of memory and of storage, fed rubbish."""

import itertools
import json
import math
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from factories import colour_sample, make_image, write_dataset
from train_processes import STEPS, ProcessEndedError, Training, assert_same_curve, at_step, computed
from warren.config import Duration, GuardConfig, StageConfig, ZeroStage
from warren.data.sample import IMAGE_MARK, Sample, Turn
from warren.errors import CheckpointError, DamagedCheckpointError, QuarantineError, StorageError, TrainingError
from warren.storage import FileEntry, digest_file
from warren.train.damaged_checkpoints import newest_intact
from warren.train.optimization import cosine_schedule


def spoil(loop: Any, model: Any, rank: int, kill_at: int | None = None) -> None:
    """On the last rank: no finite loss at step 1, no finite gradient at step 3, a high loss at step 4."""
    factors = {"output": 1.0, "gradient": 1.0}

    def set_factors(output: float = 1.0, gradient: float = 1.0) -> None:
        factors.update(output=output, gradient=gradient)

    model.lm_head.register_forward_hook(lambda module, inputs, output: output * factors["output"])
    model.model.multi_modal_projector.linear_1.bias.register_hook(lambda gradient: gradient * factors["gradient"])
    if rank == loop.ranks.world_size - 1:
        at_step(loop, 1, partial(set_factors, output=math.nan))
        at_step(loop, 2, set_factors)
        at_step(loop, 3, partial(set_factors, gradient=math.inf))
        at_step(loop, 4, partial(set_factors, output=1000.0))
        at_step(loop, 5, set_factors)
    if kill_at is not None:
        at_step(loop, kill_at, partial(kill_once_saved, loop))


def kill_once_saved(loop: Any) -> None:
    loop._writer.finish()
    if loop.ranks.rank == 0:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(("zero_stage", "world_size"), [(0, 1), (2, 2), (3, 1)])
def test_steps_that_would_do_harm_are_left_out(training: Training, zero_stage: ZeroStage, world_size: int) -> None:
    guard = GuardConfig(spike_factor=3.0, spike_window_steps=2)
    stage = training.stage.model_copy(update={"guard": guard, "checkpoint_every_steps": 3})
    whole = replace(training, stage=stage, zero_stage=zero_stage, prepare=spoil)
    [rows, *_] = whole.train(world_size)
    assert [row["skipped"].split(" is ")[0] for row in rows] == [
        "",
        "the loss",
        "",
        "the gradient norm",
        "the loss",
        "",
    ]
    assert "over 3 times the median" in rows[4]["skipped"]
    schedule = cosine_schedule(STEPS, stage.warmup_fraction)
    assert [row["learning_rate"] for row in rows] == pytest.approx([1e-3 * schedule(step) for step in range(STEPS)])
    written = json.loads((training.root / "runs" / "r" / "skipped" / "00000001.json").read_bytes())
    assert len(written["keys"]) == stage.global_batch_size
    if world_size > 1:
        assert_alike_after_a_kill(whole, world_size, rows)


def assert_alike_after_a_kill(whole: Training, world_size: int, rows: list[dict[str, Any]]) -> None:
    broken = replace(whole, name="broken", prepare=partial(spoil, kill_at=4))
    with pytest.raises((ProcessEndedError, RuntimeError)):
        broken.train(world_size)
    assert broken.run.checkpoints.steps() == [3]
    [resumed, *_] = replace(broken, prepare=spoil).train(world_size)
    assert [str(computed(row)) for row in resumed] == [str(computed(row)) for row in rows]  # bit by bit; NaN is not NaN
    assert [row["skipped"] for row in resumed] == [row["skipped"] for row in rows]


def spoil_all(loop: Any, model: Any, rank: int) -> None:
    model.lm_head.register_forward_hook(lambda module, inputs, output: output * math.nan)


def test_too_many_skips_in_a_row_end_the_run_and_name_the_samples(training: Training) -> None:
    with pytest.raises(TrainingError, match=r"3 steps in a row.*max_skips_in_a_row=2.*the loss is nan.*00000002\.json"):
        replace(
            training,
            stage=training.stage.model_copy(update={"guard": GuardConfig(max_skips_in_a_row=2)}),
            prepare=spoil_all,
        ).train(1)


def test_storage_that_refuses_a_checkpoint_ends_the_run_soon_after_the_first(training: Training) -> None:
    run = replace(training, stage=long(training), prepare=count_steps)
    Path(run.run.folder.uri).mkdir(parents=True)
    Path(run.run.folder.uri, "checkpoints").write_text("a file where a folder should be")
    with pytest.raises(StorageError, match="checkpoints"):
        run.train(2)
    assert counted(run) < 100


def test_a_full_disk_under_the_storage_ends_the_run_soon_after_the_first_checkpoint(
    training: Training, full_disk: Path
) -> None:
    run = replace(training, stage=long(training), prepare=count_steps)
    folder = Path(run.run.folder.uri)
    folder.parent.mkdir(parents=True)
    folder.symlink_to(full_disk)
    with pytest.raises(StorageError, match="No space left on device"):
        run.train(2)
    assert counted(run) < 100
    assert run.run.checkpoints.steps() == []


def test_a_full_local_disk_is_found_before_a_checkpoint_is_written_there(training: Training, full_disk: Path) -> None:
    run = replace(training, stage=long(training), prepare=partial(count_steps, scratch=full_disk))
    with pytest.raises(CheckpointError, match=f"{full_disk} has 0.0 GB free.*point TMPDIR at a larger disk"):
        run.train(2)
    assert counted(run) == 2
    assert not list(full_disk.iterdir())


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with next to no room."""
    folder = tmp_path / "full"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a full disk has to be mounted, and that is not allowed here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def long(training: Training) -> StageConfig:
    return training.stage.model_copy(update={"duration": Duration(steps=400), "checkpoint_every_steps": 2})


def counted(run: Training) -> int:
    return Path(run.run.folder.uri).parent.with_name("steps").stat().st_size


def count_steps(loop: Any, model: Any, rank: int, scratch: Path | None = None) -> None:
    tempfile.tempdir = str(scratch) if scratch else None

    def count(row: dict[str, Any]) -> None:
        with Path(loop.run.folder.uri).parent.with_name("steps").open("a") as file:
            file.write(".")

    loop.on_step = count


def note_stopped(loop: Any, model: Any, rank: int) -> None:
    import warren.train.loop

    warren.train.loop._ASK_EVERY_S = 0.0
    asked = itertools.count()
    loop.must_stop = lambda: next(asked) == 2


@pytest.mark.parametrize(
    ("zero_stage", "before", "after"),
    [
        *[(1, 2, 3), (2, 2, 2), (2, 2, 1), (3, 2, 3)],
        *(pytest.param(*sizes, marks=pytest.mark.long) for sizes in [(1, 4, 2), (1, 1, 2), (2, 4, 2), (3, 4, 2)]),
    ],
)
def test_a_run_that_gives_way_goes_on_from_where_it_stood_with_any_number_of_ranks(
    training: Training, curve: list[dict[str, Any]], zero_stage: ZeroStage, before: int, after: int
) -> None:
    resized = replace(training, zero_stage=zero_stage, micro_batch_size=1, prepare=note_stopped)
    [short, *_] = resized.train(before)
    assert len(short) == 3
    assert resized.run.checkpoints.steps() == [3]
    [resumed, *_] = replace(resized, prepare=None).train(after)
    assert resumed[:3] == short
    assert_same_curve(resumed, curve, rel=2e-4)


def test_every_rank_finds_a_damaged_checkpoint_and_the_run_goes_on_from_the_one_before(training: Training) -> None:
    stage = training.stage.model_copy(update={"checkpoint_every_steps": 2, "keep_checkpoints": 3})
    training = replace(training, stage=stage)
    [whole, *_] = training.train(2)
    latest = training.run.checkpoints.read(STEPS)
    [file, *_] = latest.below("state")
    target = Path(training.run.checkpoints.at(STEPS).uri, file.path)
    data = target.read_bytes()
    longer = replace(training, stage=stage.model_copy(update={"duration": Duration(steps=STEPS + 1)}))
    target.write_bytes(data[:-1] + bytes([data[-1] ^ 255]))
    with pytest.raises(DamagedCheckpointError, match=f"{target}: .*damaged, restore it from a copy"):
        longer.train(2)
    found = newest_intact(training.run, "its bytes are others")
    assert found is not None
    assert found.step == 4
    [resumed, *_] = training.train(2)
    assert [computed(row) for row in resumed] == [computed(row) for row in whole]


class Runs:
    """What somebody who may write into a run's folder puts into its files: unpickling it creates `target`."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self._target,)


def test_a_state_that_would_run_code_is_refused_as_it_is_and_on_more_ranks(training: Training, tmp_path: Path) -> None:
    stage = training.stage.model_copy(update={"duration": Duration(steps=2), "validation": None})
    short = replace(training, stage=stage.model_copy(update={"checkpoint_every_steps": 2}))
    short.train(1)
    folder = Path(short.run.checkpoints.at(2).uri)
    manifest = json.loads((folder / "manifest.json").read_text())
    states = [file for file in manifest["files"] if "/state/" in file["path"]]
    for number, file in enumerate(states):
        torch.save({"optimizer": Runs(tmp_path / f"ran-{number}")}, folder / file["path"])
        size, digest = digest_file(folder / file["path"])  # whoever writes the file can write its digest, too
        file.update(FileEntry(file["path"], size, digest).to_json())
    (folder / "manifest.json").write_text(json.dumps(manifest))
    longer = replace(short, stage=stage.model_copy(update={"duration": Duration(steps=3)}))
    for world_size in (1, 2):  # the second converts the state first
        with pytest.raises(CheckpointError, match="refused, because it holds more than tensors and plain values"):
            longer.train(world_size)
    assert not list(tmp_path.glob("ran-*"))


def test_too_many_bad_samples_end_the_run_at_once_and_are_written_down(training: Training) -> None:
    turns = (Turn("user", f"{IMAGE_MARK}\nwhat colour?"), Turn("assistant", "red"))
    bad = [Sample(f"bad-{i}", (make_image()[:50],), turns, f"bad-{i}.png") for i in range(8)]
    write_dataset(training.root, "mixed", [*bad, *(colour_sample(i) for i in range(56))])
    stage = training.stage.model_copy(
        update={"dataset": "mixed@v1", "max_quarantined_fraction": 0.05, "checkpoint_every_steps": 2}
    )
    with pytest.raises(QuarantineError, match=r"of 64 samples cannot be used.*bad-\d.*cannot be decoded"):
        replace(training, stage=stage).train(2)
    assert list(Path(training.run.folder.uri, "quarantine").iterdir())
    assert STEPS not in training.run.checkpoints.steps()


def hang(loop: Any, model: Any, rank: int) -> None:
    """Have rank 1 stand still at step 2, and its watchdog bark soon after."""

    def stand_still() -> None:
        loop._watchdog._timeout_s = 0.5
        threading.Event().wait()

    if rank == 1:
        at_step(loop, 2, stand_still)


def test_a_rank_that_hangs_is_ended_says_where_it_stood_and_leaves_no_other_waiting(training: Training) -> None:
    with pytest.raises((ProcessEndedError, RuntimeError)):
        replace(training, prepare=hang).train(2)
    [report] = Path(training.run.folder.uri, "stacks").iterdir()
    assert report.name.endswith("-rank-00001.txt")
    assert "while training step 2" in report.read_text()
    assert "in stand_still" in report.read_text()


def ask_for_too_much(loop: Any, model: Any, rank: int) -> None:
    def take(*_: Any) -> None:
        torch.empty(1 << 50)

    at_step(loop, 1, lambda: model.lm_head.register_forward_pre_hook(take) and None)


def test_a_step_that_is_out_of_memory_says_what_to_change(training: Training) -> None:
    with pytest.raises(TrainingError, match=r"out of memory at step 1 .* resources\.micro_batch_size=1, or"):
        replace(training, prepare=ask_for_too_much).train(2)
