"""Elastic runs, whose number of workers changes: a checkpoint before each change, and no workers on nodes that leave.

Ray Train's elastic policy ends the workers at once when there is room for more of them, or for fewer. A callback of its
controller first asks them for a checkpoint, and lets the policy go on once they have stopped. The policy also counts
nodes that are being drained, where no worker starts any more, so that a notice of two minutes would cost the run two
minutes; and for a while it counts nodes that are gone. Both parts rely on Ray Train's internals, because there are no
public hooks; Ray's version is pinned.
"""

import time
from contextlib import suppress
from typing import Any

import ray
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator
from ray.exceptions import RayError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import ReschedulingState, ResizingState, RestartingState
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy

from warren.cluster.train.placement_group import without_detached_cleaner

_POLL_S = 0.1
_RECOUNT_TIMEOUT_S = 5.0


class StayingNodes(ElasticScalingPolicy):  # type: ignore[misc]
    """Counts workers only for nodes that stay."""

    def _count_possible_workers(self, reserved_resources: dict[str, dict[str, float]]) -> int:
        staying = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        staying -= ray._private.state.state.get_draining_nodes().keys()
        reserved = {node: resources for node, resources in reserved_resources.items() if node in staying}
        return super()._count_possible_workers(reserved)  # type: ignore[no-any-return]


class ElasticTrainer(TorchTrainer):  # type: ignore[misc]
    """A `TorchTrainer` that places workers on nodes that stay, where their number may change.

    Ctrl-C ends the driver, and the controller and the workers with it. Ray Train would have the controller abort, which
    looks like a controller that died: the run would be started again.
    """

    def _create_default_callbacks(self) -> list[Any]:
        return without_detached_cleaner(super()._create_default_callbacks())

    def _register_sigint_handler(self, controller: Any) -> None:
        """Leave SIGINT to the driver."""

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        if self.scaling_config.elasticity_enabled:
            parts["scaling_policy"] = StayingNodes(self.scaling_config)
        return super()._initialize_and_run_controller(**parts)


class CheckpointBeforeResize(ControllerCallback):  # type: ignore[misc]
    """Runs in Ray Train's controller.

    Args:
        monitor: The run monitor, which passes the request to stop on to the workers.
        timeout_s: How long they have; workers that are ended later go on from their newest checkpoint.
    """

    def __init__(self, monitor: Any, timeout_s: float) -> None:
        self._monitor, self._timeout_s = monitor, timeout_s

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Wait for the workers' checkpoint before they are replaced; count the nodes anew after a loss."""
        if isinstance(current_state, ResizingState):
            self._wait_for_checkpoint()
        elif isinstance(current_state, RestartingState | ReschedulingState):
            _recount_nodes()

    def _wait_for_checkpoint(self) -> None:
        ray.get(self._monitor.request_stop.remote())
        deadline = time.monotonic() + self._timeout_s
        while not ray.get(self._monitor.has_stopped.remote()) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        ray.get(self._monitor.record_event.remote("failed", time.time()))
        ray.get(self._monitor.clear_stop_request.remote())


def _recount_nodes() -> None:
    """Have Ray count the nodes' resources now: it counts every 20 s only, and would use a node that is gone."""
    with suppress(RayError):
        coordinator = get_or_create_autoscaling_coordinator()
        ray.get(coordinator.get_reserved_resources.remote("", recompute=True), timeout=_RECOUNT_TIMEOUT_S)
