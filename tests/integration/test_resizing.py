"""A change of a run's size, with the real board between Ray Train's controller and the workers."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import ray
from ray.train.v2._internal.execution.controller.state import (
    ReschedulingState,
    ResizingState,
    RestartingState,
    RunningState,
)

from serve_endpoint import wait_for
from warren.cluster.train import elastic
from warren.cluster.train.elastic import CheckpointBeforeResize
from warren.cluster.train.monitor import start_monitor

RESIZING = (RunningState(), ResizingState(None))


@pytest.fixture(scope="module")
def monitor(ray_cluster: Any) -> Any:
    return start_monitor()


def asks(monitor: Any) -> bool:
    return bool(ray.get(monitor.stop_requested.remote()))


def test_a_resize_waits_until_the_workers_have_given_way(monitor: Any) -> None:
    ray.get(monitor.mark.remote("entered", 1.0))
    assert ray.get(monitor.absent_s.remote()) == 0.0
    with ThreadPoolExecutor(1) as controller:
        resize = controller.submit(CheckpointBeforeResize(monitor, 60).after_controller_state_update, *RESIZING)
        wait_for(lambda: asks(monitor))
        assert not resize.done()
        monitor.note_stopped.remote()
        resize.result(60)
    assert not asks(monitor), "those that come next would give way at once"
    assert ray.get(monitor.absent_s.remote()) > 0.0


def test_it_goes_on_without_workers_that_do_not_answer(monitor: Any) -> None:
    CheckpointBeforeResize(monitor, timeout_s=0.1).after_controller_state_update(*RESIZING)
    assert not asks(monitor)


def test_nothing_else_that_the_controller_does_disturbs_the_workers(monitor: Any) -> None:
    with ThreadPoolExecutor(1) as controller:
        others = CheckpointBeforeResize(monitor, 60)
        controller.submit(others.after_controller_state_update, *reversed(RESIZING)).result(60)
    assert not asks(monitor)


@pytest.mark.parametrize("state", [RestartingState, ReschedulingState])
def test_after_a_loss_the_nodes_are_counted_anew(monitor: Any, state: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real coordinator is asked, in a way that it understands."""
    counted: list[Any] = []

    def note(value: Any, **options: Any) -> Any:
        counted.append(get(value, **options))
        return counted[-1]

    get = ray.get
    monkeypatch.setattr(elastic.ray, "get", note)
    loss = state(training_failed_error=None)
    CheckpointBeforeResize(monitor, 60).after_controller_state_update(RunningState(), loss)
    assert {} in counted, "what Ray has reserved for nobody"
