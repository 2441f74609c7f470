"""What Ray Train leaves behind when a driver ends while its controller starts.

Ray Train's controller starts a detached actor that removes the workers' placement group once the controller is gone.
That actor begins to watch when the controller calls it: a controller that ends before, as by `ray job stop` during
start-up, leaves it waiting for ever. Once it has seen the controller gone, it does not end either. Here it watches from
its start, and ends. This relies on Ray Train's internals, as there are no public hooks; Ray's version is pinned.
"""

from typing import Any

import ray
from ray._common.constants import HEAD_NODE_RESOURCE_NAME
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller.placement_group_cleaner import PlacementGroupCleaner


class WatchfulCleaner(PlacementGroupCleaner):  # type: ignore[misc]
    """Watches the controller from its start, and ends with it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.start_monitoring()

    def _exit(self) -> None:
        """End the actor; `exit_actor`, which Ray Train calls here, ends the watching thread alone."""
        ray.kill(ray.get_runtime_context().current_actor)


class WatchfulCleanerCallback(PlacementGroupCleanerCallback):  # type: ignore[misc]
    """Runs in Ray Train's controller."""

    def after_controller_start(self, train_run_context: Any) -> None:
        """Start the actor on the head, where it outlives the controller's node."""
        self._controller_actor_id = ray.get_runtime_context().get_actor_id()
        options = {"lifetime": "detached", "resources": {HEAD_NODE_RESOURCE_NAME: 0.001}}
        self._cleaner = (
            ray.remote(num_cpus=0)(WatchfulCleaner)
            .options(**options)
            .remote(
                controller_actor_id=self._controller_actor_id,
                check_interval_s=self._check_interval_s,
                get_actor_timeout_s=self._get_actor_timeout_s,
                stop_timeout=self._stop_timeout,
            )
        )


def with_watchful_cleaner(callbacks: list[Any]) -> list[Any]:
    """Put the callback in the place of Ray Train's own."""
    return [WatchfulCleanerCallback() if type(c) is PlacementGroupCleanerCallback else c for c in callbacks]
