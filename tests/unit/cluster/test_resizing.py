"""Workers that are to be replaced by more, or by fewer, commit a checkpoint first."""

from types import SimpleNamespace
from typing import Any

import pytest
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.controller.state import (
    ReschedulingState,
    ResizingState,
    RestartingState,
    RunningState,
)

from warren.cluster.train import elastic
from warren.cluster.train.elastic import CheckpointBeforeResize, StayingNodes
from warren.cluster.train.monitor import RunMonitor


class Actor:
    """Calls the methods of an object as an actor's; a method that it does not have is an error."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._actor, name)

        def remote(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            return method(*args, **kwargs)

        return SimpleNamespace(remote=remote)


class SlowWorkers(RunMonitor):
    """The run monitor of workers that have stopped once they were asked about so many times."""

    def __init__(self, num_asked: int) -> None:
        super().__init__()
        self._num_left = num_asked

    def has_stopped(self) -> bool:
        self._num_left -= 1
        if self._num_left == 0:
            assert self.stop_requested()
            self.report_stopped()
        return super().has_stopped()


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elastic.ray, "get", lambda value, timeout=0: value)
    monkeypatch.setattr(elastic, "_POLL_S", 0.01)


def test_a_resize_waits_until_the_workers_have_stopped() -> None:
    monitor = Actor(SlowWorkers(num_asked=3))
    CheckpointBeforeResize(monitor, timeout_s=60).after_controller_state_update(RunningState(), ResizingState(None))
    assert monitor.calls == ["request_stop", *["has_stopped"] * 3, "record_event", "clear_stop_request"]


def test_it_goes_on_without_workers_that_do_not_answer() -> None:
    monitor = Actor(SlowWorkers(num_asked=10**6))
    CheckpointBeforeResize(monitor, timeout_s=0.1).after_controller_state_update(RunningState(), ResizingState(None))
    assert monitor.calls[-2:] == ["record_event", "clear_stop_request"]
    assert not monitor.stop_requested.remote()  # else the next workers would stop at once


@pytest.mark.parametrize("state", [RestartingState, ReschedulingState])
def test_after_a_loss_the_nodes_are_counted_anew(state: type, monkeypatch: pytest.MonkeyPatch) -> None:
    coordinator = Actor(SimpleNamespace(get_reserved_resources=lambda requester, recompute: None))
    monkeypatch.setattr(elastic, "get_or_create_autoscaling_coordinator", lambda: coordinator)
    CheckpointBeforeResize(Actor(RunMonitor()), 60).after_controller_state_update(
        RunningState(), state(training_failed_error=None)
    )
    assert coordinator.calls == ["get_reserved_resources"]


def test_nothing_else_that_the_controller_does_disturbs_the_workers() -> None:
    monitor = Actor(RunMonitor())
    CheckpointBeforeResize(monitor, timeout_s=60).after_controller_state_update(ResizingState(None), RunningState())
    assert monitor.calls == []


@pytest.mark.parametrize(("alive", "leaving", "room"), [(True, {}, 3), (True, {"other": 0}, 1), (False, {}, 1)])
def test_a_node_that_goes_or_is_gone_has_room_for_nobody(
    alive: bool, leaving: dict[str, int], room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = StayingNodes(ScalingConfig(num_workers=(1, 4), resources_per_worker={"CPU": 2}))
    nodes = [{"NodeID": "head", "Alive": True}, {"NodeID": "other", "Alive": alive}]
    monkeypatch.setattr(elastic.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(elastic.ray._private.state.state, "get_draining_nodes", lambda: leaving)
    assert policy._count_possible_workers({"head": {"CPU": 3.0}, "other": {"CPU": 4.0}}) == room
