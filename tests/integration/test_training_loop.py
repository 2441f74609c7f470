"""The loop in plain processes: one loss curve whatever the cut; killed, resumed, short of storage, fed rubbish."""

import itertools
import json
import math
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from factories import colour_sample, tiny_model_config, tiny_stage, write_dataset
from train_processes import ProcessEndedError, Training, scratch
from warren.config import Duration, GuardConfig, LoraConfig, StageConfig, ValidationConfig, ZeroStage
from warren.data.model_inputs import Inputs
from warren.data.sample import Sample, Turn
from warren.errors import CheckpointError, DamagedCheckpointError, StorageError, TrainingError
from warren.train.damaged_checkpoints import newest_intact
from warren.train.optimization import cosine_schedule

STEPS = 6
OFFLOADS = [(1, ("optimizer",)), (2, ("optimizer",)), (3, ("optimizer", "weights"))]


@pytest.fixture
def training(tmp_path: Path, tiny_inputs: tuple[Inputs, str]) -> Training:
    root = scratch(tmp_path)
    text = (Turn("user", "what colour is number 3?"), Turn("assistant", "red"))
    samples = [colour_sample(i) if i % 5 else Sample(f"text-{i}", (), text, "tests") for i in range(48)]
    write_dataset(root, "d", samples)
    stage = tiny_stage(
        "d@v1",
        duration=Duration(steps=STEPS),
        projector_learning_rate=3e-4,
        weight_decay=0.1,
        warmup_fraction=0.2,
        validation=ValidationConfig(dataset="d@v1", every_steps=4),
    )
    return Training(root, "r", stage, tiny_inputs)


def figures(row: dict[str, Any]) -> list[float]:
    return [row["loss"], row["grad_norm"], row.get("validation_loss", 0.0)]


def test_one_loss_curve_whatever_the_zero_stage_the_cut_and_the_number_of_ranks(
    training: Training, tmp_path: Path
) -> None:
    training = replace(training, prepare=partial(compile_into, tmp_path / "compiled"))
    # With three ranks and micro-batches of one sample, one of the nine is empty; some hold text only.
    cuts: list[tuple[ZeroStage, int, int]]
    cuts = [(0, 8, 1), (2, 2, 1), (1, 4, 2), (3, 2, 2), (0, 2, 3), (2, 1, 3), (3, 1, 4)]
    curves = {}
    for zero_stage, micro_batch_size, world_size in cuts:
        name = f"zero{zero_stage}-micro{micro_batch_size}-ranks{world_size}"
        one = replace(training, name=name, zero_stage=zero_stage, micro_batch_size=micro_batch_size)
        [curves[name], *_] = one.train(world_size)
    packed: list[tuple[ZeroStage, int]] = [(2, 1), (3, 2)]
    for zero_stage, world_size in packed:
        name = f"zero{zero_stage}-packed-ranks{world_size}"
        one = replace(training, name=name, zero_stage=zero_stage, micro_batch_size=1, changes={"packing": True})
        [curves[name], *_] = one.train(world_size)
        assert all(row["padding_fraction"] < 0.2 for row in curves[name])
    assert not [*(tmp_path / "compiled").rglob("*.cpp")]
    compiled: list[tuple[ZeroStage, dict[str, bool]]] = [(0, {"packing": True}), (2, {"gradient_checkpointing": True})]
    for zero_stage, changes in compiled:
        name = f"zero{zero_stage}-compiled"
        one = replace(
            training, name=name, zero_stage=zero_stage, micro_batch_size=2, changes={**changes, "compile": True}
        )
        [curves[name], *_] = one.train(2)
    assert [*(tmp_path / "compiled").rglob("*.cpp")]
    whole = curves["zero0-micro8-ranks1"]
    assert len(whole) == STEPS
    assert whole[-1]["loss"] < whole[0]["loss"]
    assert [step for step, row in enumerate(whole, 1) if "validation_loss" in row] == [4, 6]
    for name, found in curves.items():
        for expected, measured in zip(whole, found, strict=True):
            assert figures(measured) == pytest.approx(figures(expected), rel=2e-5), (name, expected["step"])
        same = ("step", "samples", "supervised_tokens", "tokens", "images", "learning_rate")
        assert [[row[key] for key in same] for row in found] == [[row[key] for key in same] for row in whole], name


def compile_into(folder: Path, loop: Any, model: Any, rank: int) -> None:
    """Have this rank keep what it compiles in a folder of the test: one that compiles nothing leaves no folder."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)


@pytest.mark.parametrize(("zero_stage", "offload"), OFFLOADS)
def test_what_waits_on_the_host_trains_as_ever(
    training: Training, zero_stage: ZeroStage, offload: tuple[str, ...]
) -> None:
    [whole, *_] = replace(training, name="whole", zero_stage=zero_stage).train(1)
    changed = replace(training, name="offloaded", zero_stage=zero_stage, changes={"offload": offload})
    [found, *_] = changed.train(2)
    for expected, measured in zip(whole, found, strict=True):
        assert figures(measured) == pytest.approx(figures(expected), rel=2e-5)


def allow_fp16(loop: Any, model: Any, rank: int, kill_at: int | None = None) -> None:
    """Let DeepSpeed compute in fp16 on a CPU, which torch can, only slowly."""
    from deepspeed.accelerator import get_accelerator

    get_accelerator().is_fp16_supported = lambda: True
    if kill_at is not None:
        at_step(loop, kill_at, partial(kill_once_saved, loop))


@pytest.mark.parametrize(("zero_stage", "then_on"), [(1, 2), (2, 1), (3, 2)])
def test_fp16_finds_its_loss_scale_and_a_resumed_run_goes_on_with_it(
    training: Training, zero_stage: ZeroStage, then_on: int
) -> None:
    stage = training.stage.model_copy(update={"checkpoint_every_steps": 3})
    [plain, *_] = replace(training, name="plain", stage=stage, zero_stage=zero_stage).train(1)
    half = replace(
        training, name="half", stage=stage, zero_stage=zero_stage, changes={"precision": "fp16"}, prepare=allow_fp16
    )
    [rows, *_] = half.train(2)
    assert rows[0]["skipped"] == "the gradient overflowed fp16 at a loss scale of 65536"
    assert [row["loss_scale"] for row in rows] == [65536, *[32768] * 5]
    assert not any(row["skipped"] for row in rows[1:])
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in plain], rel=5e-3)
    broken = replace(half, name="broken", prepare=partial(allow_fp16, kill_at=4))
    with pytest.raises((ProcessEndedError, RuntimeError)):
        broken.train(2)
    [resumed, *_] = replace(broken, prepare=allow_fp16).train(then_on)
    assert [row["loss_scale"] for row in resumed] == [row["loss_scale"] for row in rows]
    expected = [row["loss"] for row in rows]
    assert [row["loss"] for row in resumed] == (expected if then_on == 2 else pytest.approx(expected, rel=1e-3))


def at_step(loop: Any, step: int, action: Callable[[], None]) -> None:
    """Run `action` when the loop asks for the batch of a step."""
    asked = loop._next_part

    def ask(number: int, batches: Any) -> Any:
        if number == step:
            action()
        return asked(number, batches)

    loop._next_part = ask


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
    assert [str(figures(row)) for row in resumed] == [str(figures(row)) for row in rows]  # bit by bit; NaN is not NaN
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


def test_a_run_that_gives_way_has_a_checkpoint_where_it_stood(training: Training) -> None:
    [whole, *_] = training.train(2)
    pushed = replace(training, name="pushed", prepare=note_stopped)
    [short, *_] = pushed.train(2)
    assert len(short) == 3
    assert pushed.run.checkpoints.steps() == [3]
    [resumed, *_] = replace(pushed, prepare=None).train(2)
    assert [figures(row) for row in resumed] == [figures(row) for row in whole]


@pytest.mark.parametrize(
    ("zero_stage", "before", "after"), [(1, 4, 2), (1, 1, 2), (1, 2, 3), (2, 4, 2), (2, 2, 1), (3, 4, 2), (3, 2, 3)]
)
def test_a_run_goes_on_with_another_number_of_ranks(
    training: Training, zero_stage: ZeroStage, before: int, after: int
) -> None:
    training = replace(training, zero_stage=zero_stage, micro_batch_size=1)
    [whole, *_] = training.train(after)
    resized = replace(training, name="resized", prepare=note_stopped)
    resized.train(before)
    [resumed, *_] = replace(resized, prepare=None).train(after)
    assert len(resumed) == STEPS
    for found, expected in zip(resumed, whole, strict=True):
        assert figures(found) == pytest.approx(figures(expected), rel=2e-4)
        assert found["samples"] == expected["samples"]


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
    assert [figures(row) for row in resumed] == [figures(row) for row in whole]


def look_inside(loop: Any, model: Any, rank: int, folder: Path) -> None:
    """Note what ZeRO-3 holds whole while decoder blocks are recomputed, after each backward, and groups' timeouts."""
    import torch
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
    from torch.distributed.distributed_c10d import _world

    from warren.models import add_adapters, freeze_all_but
    from warren.train import engine

    add_adapters(model, LoraConfig(rank=2, alpha=4), 3)
    freeze_all_but(model, loop.stage.trainable)
    written = engine.deepspeed_config
    at_once = {
        f"stage3_{name}": 0 for name in ("max_live_parameters", "max_reuse_distance", "param_persistence_threshold")
    }
    engine.deepspeed_config = lambda *args: {
        **(config := written(*args)),
        "zero_optimization": {**config["zero_optimization"], **at_once},
    }

    def whole() -> int:
        parameters = loop._engine._engine.module.parameters()
        return sum(p.ds_numel for p in parameters if p.ds_status == ZeroParamStatus.AVAILABLE)

    found: dict[str, list[float]] = {"in_recompute": [], "after_backward": [], "timeouts_s": []}
    for block in model.model.language_model.layers:
        block.mlp.down_proj.register_forward_pre_hook(lambda *_: found["in_recompute"].append(whole()))
    forward_backward, watch = engine.TrainingEngine.forward_backward, loop._watch

    def counted(self: Any, *args: Any) -> Any:
        share = forward_backward(self, *args)
        found["after_backward"].append(whole())
        return share

    def note(step: int, row: Any, part: Any) -> None:
        watch(step, row, part)
        device = torch.device("cpu")
        found["timeouts_s"] = [g._get_backend(device).options._timeout.total_seconds() for g in _world.pg_map]
        (folder / f"{rank}.json").write_text(json.dumps(found))

    engine.TrainingEngine.forward_backward, loop._watch = counted, note  # type: ignore[method-assign, assignment]


def test_what_is_gathered_is_let_go_and_no_group_gives_up_before_the_watchdog(
    training: Training, tmp_path: Path
) -> None:
    # DeepSpeed's issue 8148: frozen weights stayed whole after the backward pass had recomputed their blocks.
    stage = training.stage.model_copy(
        update={"trainable": ("projector", "language_model"), "duration": Duration(steps=2), "validation": None}
    )
    looked = replace(
        training,
        stage=stage,
        zero_stage=3,
        changes={"gradient_checkpointing": True, "hang_timeout_s": 600.0},
        model=tiny_model_config(num_hidden_layers=6),
        prepare=partial(look_inside, folder=tmp_path),
    )
    looked.train(2)
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert len(found["timeouts_s"]) > 1
        assert set(found["timeouts_s"]) == {660.0}
        assert set(found["after_backward"]) == {0}
        assert 0 < max(found["in_recompute"]) < 2 * 10_400  # a block's frozen weights are 10,400
