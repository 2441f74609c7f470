"""A change of a run's size, with the real run monitor between Ray Train's controller and the workers."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import ray

from serve_endpoint import wait_for
from warren.cluster.train import elastic
from warren.cluster.train.elastic import CheckpointBeforeResize
from warren.cluster.train.monitor import start_monitor


@pytest.fixture(scope="module")
def monitor(ray_cluster: Any) -> Any:
    return start_monitor()


def is_stop_requested(monitor: Any) -> bool:
    return bool(ray.get(monitor.stop_requested.remote()))


def test_a_resize_waits_until_the_workers_have_stopped(monitor: Any) -> None:
    ray.get(monitor.record_event.remote("started", 1.0))
    assert ray.get(monitor.without_workers_s.remote()) == 0.0
    with ThreadPoolExecutor(1) as controller:
        resize = controller.submit(CheckpointBeforeResize(monitor, 60).before_resize)
        wait_for(lambda: is_stop_requested(monitor))
        assert not resize.done()
        monitor.report_stopped.remote()
        resize.result(60)
    assert not is_stop_requested(monitor), "the next workers would stop at once"
    assert ray.get(monitor.without_workers_s.remote()) > 0.0


def test_it_goes_on_without_workers_that_do_not_answer(monitor: Any) -> None:
    CheckpointBeforeResize(monitor, timeout_s=0.1).before_resize()
    assert not is_stop_requested(monitor)


def test_after_a_loss_the_nodes_are_counted_anew(monitor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real coordinator is asked, in a way that it understands."""
    counts: list[Any] = []
    recount = elastic.recount_resources
    monkeypatch.setattr(elastic, "recount_resources", lambda timeout_s: counts.append(recount(timeout_s)))
    CheckpointBeforeResize(monitor, 60).before_restart()
    assert len(counts) == 1
