"""The workers' placement group, which outlives a controller that died: the driver removes it before the next attempt.

Ray Train has a detached actor for that, which leaks. It begins to watch when the controller calls it, so a controller
that ends earlier, for example by `ray job stop` during start-up, leaves it behind for ever; nor does it end once the
controller is gone. Nothing here is detached: an actor of the driver ends with the driver, and Ray then removes its
placement groups. The callback relies on Ray Train's internals, because there are no public hooks; Ray's version is
pinned.
"""

from typing import Any

import ray
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.util.placement_group import remove_placement_group


class RecordPlacementGroup(WorkerGroupCallback):  # type: ignore[misc]
    """Runs in Ray Train's controller: reports the workers' placement group to the run monitor."""

    def __init__(self, monitor: Any) -> None:
        self._monitor = monitor

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Report the group."""
        group = worker_group.get_worker_group_state().placement_group_handle.placement_group
        ray.get(self._monitor.set_placement_group.remote(group))


def without_detached_cleaner(callbacks: list[Any]) -> list[Any]:
    """Leave out the callback that starts Ray Train's detached actor."""
    return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]


def remove_group(monitor: Any) -> None:
    """Remove the placement group of a controller that is gone, if it is still there."""
    group = ray.get(monitor.placement_group.remote())
    if group is not None:
        remove_placement_group(group)
