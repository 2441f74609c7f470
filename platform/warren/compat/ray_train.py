"""Ray Train's controller: its moments, its placement, and its end.

There are no public hooks for any of it. The classes here are what Warren hangs on Ray Train's own.
"""

import os
from typing import Any

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller.state import ReschedulingState, ResizingState, RestartingState
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy
from ray.util.placement_group import PlacementGroup

from warren.compat.ray_core import staying_nodes


class StayingNodes(ElasticScalingPolicy):  # type: ignore[misc]
    """Ray Train's elastic policy, which counts workers only for nodes that stay.

    Why: The policy counts nodes that are being drained, where nothing starts any more: after a notice of two minutes a
        run would stand still for two minutes. For a while it also counts nodes that are gone.
    Upstream: `ElasticScalingPolicy._count_possible_workers` in
        `ray/train/v2/_internal/execution/scaling_policy/elastic.py` of Ray 2.60, from
        https://github.com/ray-project/ray/pull/60721.
    If it breaks: Use Ray Train's policy as it is; a run then waits for a drained node until it is gone.
    """

    def _count_possible_workers(self, reserved_resources: dict[str, dict[str, float]]) -> int:
        staying = staying_nodes()
        kept = {node: resources for node, resources in reserved_resources.items() if node in staying}
        return super()._count_possible_workers(kept)  # type: ignore[no-any-return]


class ElasticTrainer(TorchTrainer):  # type: ignore[misc]
    """A `TorchTrainer` that places workers on nodes that stay, ends with its driver and leaves nothing behind.

    Why: Ctrl-C ends the driver, and with it the controller and the workers. Ray Train would have the controller abort,
        which looks like a controller that died, so the run would be started again. Its detached cleaner of placement
        groups outlives a controller that ends while it starts; Warren's driver removes the group itself.
    Upstream: `DataParallelTrainer._create_default_callbacks`, `._register_sigint_handler` (from
        https://github.com/ray-project/ray/pull/53600) and `._initialize_and_run_controller` in
        `ray/train/v2/api/data_parallel_trainer.py` of Ray 2.60; the cleaner came with
        https://github.com/ray-project/ray/pull/58515 and outlived its controller in
        https://github.com/ray-project/ray/pull/61756.
    If it breaks: Look in `DataParallelTrainer.fit` for where it makes callbacks, handler and controller now.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]

    def _register_sigint_handler(self, controller: Any) -> None:
        """Leave SIGINT to the driver."""

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        if self.scaling_config.elasticity_enabled:
            parts["scaling_policy"] = StayingNodes(self.scaling_config)
        return super()._initialize_and_run_controller(**parts)


class ControllerMoments(ControllerCallback):  # type: ignore[misc]
    """Called in Ray Train's controller, before it replaces its workers. Override the methods you need.

    Why: A run writes a checkpoint before its number of workers changes. Ray Train ends the workers where they stand.
    Upstream: `ControllerCallback.after_controller_state_update` in `ray/train/v2/_internal/execution/callback.py` and
        the states in `ray/train/v2/_internal/execution/controller/state.py` of Ray 2.60.
    If it breaks: Find the callback that runs between the decision to resize and the end of the workers,
        `before_controller_execute_resize_decision` perhaps.
    """

    def before_resize(self) -> None:
        """Prepare for workers that end because their number changes; they are still running."""

    def before_restart(self) -> None:
        """Prepare for workers that are started again after a loss."""

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Tell the states of the controller apart."""
        del previous_state
        if isinstance(current_state, ResizingState):
            self.before_resize()
        elif isinstance(current_state, RestartingState | ReschedulingState):
            self.before_restart()


class PlacementMoment(WorkerGroupCallback):  # type: ignore[misc]
    """Called in Ray Train's controller with the placement group of each new group of workers. Override `placed`.

    Why: The driver must remove the group of a controller that died, and only the controller knows it.
    Upstream: `WorkerGroupCallback.after_worker_group_start` in `ray/train/v2/_internal/execution/callback.py`, and
        `WorkerGroupState.placement_group_handle`, as `PlacementGroupCleanerCallback` of Ray 2.60 reads it.
    If it breaks: Read the group where `PlacementGroupCleanerCallback` reads it now.
    """

    def placed(self, group: PlacementGroup) -> None:
        """Take note of the group that the workers are in."""

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Find the group."""
        self.placed(worker_group.get_worker_group_state().placement_group_handle.placement_group)


def look_after_workers_every(seconds: float) -> None:
    """Set how often controllers that this process starts look after their workers, where nobody has set it.

    Why: Ray Train's default of two seconds is most of the time that noticing a lost worker takes.
    Upstream: `HEALTH_CHECK_INTERVAL_S_ENV_VAR` in `ray/train/v2/_internal/constants.py` of Ray 2.60.
    If it breaks: Leave it out; lost workers are noticed some seconds later.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", f"{seconds:g}")


def reconsider_workers_after(seconds: float) -> None:
    """Set how long workers may wait for their place before their number is decided anew, where nobody has set it.

    Why: A node may have died since. Ray Train's default is a minute.
    Upstream: `WORKER_GROUP_START_TIMEOUT_S_ENV_VAR` in `ray/train/v2/_internal/constants.py` of Ray 2.60.
    If it breaks: Leave it out; an elastic run goes on up to a minute later.
    """
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", f"{seconds:g}")
