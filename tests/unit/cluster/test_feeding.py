"""The stream begins before its first batch is asked for, and its scheduling loop keeps a pace."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from factories import colour_sample, source_of, write_dataset
from warren.cluster.train import run_dataset
from warren.cluster.train.run_dataset import started
from warren.compat.ray_data import Pace
from warren.data.batch import Cut
from warren.data.model_inputs import Inputs
from warren.data.stream import Encoding, StreamSpec
from warren.storage import Location


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


def test_a_loop_that_never_waits_takes_fifty_steps_a_second_at_most() -> None:
    pace, began = Pace(), time.monotonic()
    for _ in range(6):
        pace.on_execution_step(None)
    assert time.monotonic() - began >= 5 * 0.02
