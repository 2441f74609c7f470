"""The stream begins before its first batch is asked for, and its scheduling loop keeps a pace."""

import threading
import time
from collections.abc import Iterator

import pytest

from warren.cluster.feeding import started
from warren.cluster.pacing import Pace


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


def test_a_loop_that_never_waits_takes_fifty_steps_a_second_at_most() -> None:
    pace, began = Pace(), time.monotonic()
    for _ in range(6):
        pace.on_execution_step(None)
    assert time.monotonic() - began >= 5 * 0.02
