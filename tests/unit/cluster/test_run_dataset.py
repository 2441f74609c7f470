"""The stream begins before its first batch is asked for, and its scheduling loop keeps a pace."""

import pickle
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from factories import colour_sample, source_of, write_dataset
from warren.cluster.train import run_dataset
from warren.cluster.train.run_dataset import RemainingPlan, started
from warren.compat.ray_data import Pace
from warren.data.batch import Cut
from warren.data.model_inputs import Inputs
from warren.data.stream import Encoding, StreamSpec
from warren.storage import Location
from warren.train.checkpoint import CheckpointManifest
from warren.train.run import Run


def test_the_first_batch_is_loaded_before_it_is_asked_for() -> None:
    begun = threading.Event()

    def batches() -> Iterator[int]:
        begun.set()
        yield from range(3)

    ahead = started(batches())
    assert begun.wait(30)
    assert list(ahead) == [0, 1, 2]
    assert list(started(iter(()))) == []


def test_an_error_of_the_stream_is_raised_where_the_batch_is_taken() -> None:
    def broken() -> Iterator[int]:
        raise OSError("storage is gone")
        yield 0

    with pytest.raises(OSError, match="storage is gone"):
        next(started(broken()))


def test_a_rank_reads_its_share_of_the_first_step_itself_but_never_the_last_nor_a_large_one(
    tmp_path: Path, tiny_inputs: tuple[Inputs, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Location.parse(str(tmp_path))
    source = source_of(root, write_dataset(root, "d", [colour_sample(i) for i in range(24)]))
    spec = StreamSpec((source,), Encoding(*tiny_inputs, 96), 8, seed=5, window_samples=16, epochs=1)

    def own(start_step: int) -> list[tuple[int, int]]:
        return [(part.step, part.rank) for part in run_dataset._own_parts(spec, Cut(2, 4), 1, start_step)]

    assert [own(step) for step in range(3)] == [[(0, 1)], [(1, 1)], []]
    assert [run_dataset._first_streamed(spec, step) for step in range(3)] == [1, 2, 2]
    monkeypatch.setattr(run_dataset, "_MAX_OWN_SAMPLES", 7)
    assert own(0) == []
    assert run_dataset._first_streamed(spec, 0) == 0


class Clock:
    """Time that passes by sleeping, and a little by itself."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds, 6))
        self.now_s += seconds


def test_a_loop_that_never_waits_takes_fifty_steps_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("warren.compat.ray_data.time", clock)
    pace = Pace()
    for busy_s in (0.0, 0.005, 0.0, 1.0, 0.0):
        pace.on_execution_step(None)
        clock.now_s += busy_s
    pace.on_execution_step(None)
    assert clock.slept == [0.0, 0.02, 0.015, 0.02, 0.0, 0.02]


def test_where_a_run_starts_is_chosen_once_for_the_data_and_the_ranks(
    tmp_path: Path, tiny_inputs: tuple[Inputs, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Location.parse(str(tmp_path))
    source = source_of(root, write_dataset(root, "d", [colour_sample(i) for i in range(48)]))
    spec = StreamSpec((source,), Encoding(*tiny_inputs, 96), 8, seed=5, window_samples=16, epochs=1)
    run, starts, tables = Run(root / "runs" / "r"), list[Any](), list[Any]()
    monkeypatch.setattr(run_dataset.ray.data, "from_blocks", tables.append)
    monkeypatch.setattr(run_dataset, "_MAX_OWN_SAMPLES", 0)
    plan = RemainingPlan(run, spec, starts.append)
    for step in (0, 2, 4):
        if step:
            run.checkpoints.commit(CheckpointManifest(step, 1, 0, "f", ()))
        plan()
    assert [start and start.step for start in starts] == [None, 2, 4]
    assert [table[0]["first_step"][0].as_py() for table in tables] == [0, 2, 4]


def test_a_plan_is_built_once_a_process_and_does_not_travel(tmp_path: Path, tiny_inputs: tuple[Inputs, str]) -> None:
    root = Location.parse(str(tmp_path))
    source = source_of(root, write_dataset(root, "d", [colour_sample(i) for i in range(24)]))
    spec = StreamSpec((source,), Encoding(*tiny_inputs, 96), 8, seed=5, window_samples=16, epochs=1)
    before = pickle.dumps(spec)
    plan = spec.plan()
    assert spec.plan() is plan
    assert pickle.dumps(spec) == before
    assert pickle.loads(before) == spec
    assert replace(spec, epochs=2).plan().num_steps == 2 * plan.num_steps
