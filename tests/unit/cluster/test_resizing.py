"""Workers that are to be replaced by more, or by fewer, commit a checkpoint first."""

from typing import Any

import pytest
import ray
from ray.train import ScalingConfig
from ray.train.v2._internal.execution.controller.state import (
    ReschedulingState,
    ResizingState,
    RestartingState,
    RunningState,
)

from warren.cluster.train import elastic
from warren.cluster.train.elastic import CheckpointBeforeResize, StayingNodes


class Method:
    def __init__(self, calls: list[str], name: str, answer: Any) -> None:
        self._calls, self._name, self._answer = calls, name, answer

    def remote(self, *_: Any, **__: Any) -> Any:
        self._calls.append(self._name)
        return self._answer()


class RunMonitor:
    """Answers as the board does whose workers need a while to give way."""

    def __init__(self, asked_before_given: int) -> None:
        self.calls: list[str] = []
        self._left = asked_before_given

    def __getattr__(self, name: str) -> Method:
        return Method(self.calls, name, self._given if name == "has_given_way" else lambda: None)

    def _given(self) -> bool:
        self._left -= 1
        return self._left < 0


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "get", lambda value, timeout=0: value)
    monkeypatch.setattr(elastic, "_POLL_S", 0.01)


def test_a_resize_waits_until_the_workers_have_given_way() -> None:
    monitor = RunMonitor(asked_before_given=2)
    CheckpointBeforeResize(monitor, timeout_s=60).after_controller_state_update(RunningState(), ResizingState(None))
    assert monitor.calls == ["ask_to_give_way", *["has_given_way"] * 3, "mark", "end_asking"]


def test_it_goes_on_without_workers_that_do_not_answer() -> None:
    monitor = RunMonitor(asked_before_given=10**6)
    CheckpointBeforeResize(monitor, timeout_s=0.1).after_controller_state_update(RunningState(), ResizingState(None))
    assert monitor.calls[-2:] == ["mark", "end_asking"]  # else those that come next would give way at once


@pytest.mark.parametrize("state", [RestartingState, ReschedulingState])
def test_after_a_loss_the_nodes_are_counted_anew(state: type, monkeypatch: pytest.MonkeyPatch) -> None:
    coordinator = RunMonitor(0)
    monkeypatch.setattr(elastic, "get_or_create_autoscaling_coordinator", lambda: coordinator)
    CheckpointBeforeResize(RunMonitor(0), 60).after_controller_state_update(
        RunningState(), state(training_failed_error=None)
    )
    assert coordinator.calls == ["get_reserved_resources"]


def test_nothing_else_that_the_controller_does_disturbs_the_workers() -> None:
    monitor = RunMonitor(0)
    CheckpointBeforeResize(monitor, timeout_s=60).after_controller_state_update(ResizingState(None), RunningState())
    assert monitor.calls == []


@pytest.mark.parametrize(("alive", "leaving", "room"), [(True, {}, 3), (True, {"other": 0}, 1), (False, {}, 1)])
def test_a_node_that_goes_or_is_gone_has_room_for_nobody(
    alive: bool, leaving: dict[str, int], room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = StayingNodes(ScalingConfig(num_workers=(1, 4), resources_per_worker={"CPU": 2}))
    nodes = [{"NodeID": "head", "Alive": True}, {"NodeID": "other", "Alive": alive}]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray._private.state.state, "get_draining_nodes", lambda: leaving)
    assert policy._count_possible_workers({"head": {"CPU": 3.0}, "other": {"CPU": 4.0}}) == room
