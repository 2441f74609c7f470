"""Workers that are to be replaced by more, or by fewer, commit a checkpoint first."""

from collections.abc import Callable
from typing import Any

import pytest
from ray.exceptions import RayError

from warren.cluster.train import elastic
from warren.cluster.train.elastic import CheckpointBeforeResize


class Method:
    def __init__(self, calls: list[str], name: str, answer: Callable[[], Any]) -> None:
        self._calls, self._name, self._answer = calls, name, answer

    def remote(self, *_: Any, **__: Any) -> Any:
        self._calls.append(self._name)
        return self._answer()


class Monitor:
    """Answers as the run monitor does whose workers need a while to end."""

    def __init__(self, asked_before_stopped: int) -> None:
        self.calls: list[str] = []
        self._left = asked_before_stopped
        for name in ("request_stop", "clear_stop_request", "record_event"):
            setattr(self, name, Method(self.calls, name, lambda: None))
        self.has_stopped = Method(self.calls, "has_stopped", self._stopped)

    def _stopped(self) -> bool:
        self._left -= 1
        return self._left < 0


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elastic.ray, "get", lambda value: value)
    monkeypatch.setattr(elastic, "_POLL_S", 0.01)


def test_a_resize_waits_until_the_workers_have_ended() -> None:
    monitor = Monitor(asked_before_stopped=2)
    CheckpointBeforeResize(monitor, timeout_s=60).before_resize()
    assert monitor.calls == ["request_stop", *["has_stopped"] * 3, "record_event", "clear_stop_request"]


def test_it_goes_on_without_workers_that_do_not_answer() -> None:
    monitor = Monitor(asked_before_stopped=10**6)
    CheckpointBeforeResize(monitor, timeout_s=0.1).before_resize()
    assert monitor.calls[-2:] == ["record_event", "clear_stop_request"]  # else those that come next would end at once


def test_a_restart_goes_on_where_the_nodes_cannot_be_counted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def recount(timeout_s: float) -> None:
        asked.append(timeout_s)
        raise RayError("the coordinator does not answer")

    monkeypatch.setattr(elastic, "recount_resources", recount)
    monitor = Monitor(0)
    CheckpointBeforeResize(monitor, 60).before_restart()
    assert len(asked) == 1
    assert monitor.calls == []
