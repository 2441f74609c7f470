"""The workers' placement group outlives a controller that died: the driver removes it, before it starts another one.

Ray Train has a detached actor for that. It begins to watch when the controller calls it, so a controller that ends
before, as by `ray job stop` during start-up, leaves it behind for ever; and once it has seen the controller gone, it
does not end either. Nothing here is detached: what a driver started ends with the driver, and Ray then removes its
placement groups.
"""

from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group

from warren.compat.ray_train import PlacementMoment


class RecordPlacementGroup(PlacementMoment):
    """Runs in Ray Train's controller: reports the workers' placement group to the run monitor."""

    def __init__(self, monitor: Any) -> None:
        self._monitor = monitor

    def placed(self, group: PlacementGroup) -> None:
        """Report the group."""
        ray.get(self._monitor.set_placement_group.remote(group))


def remove_group(monitor: Any) -> None:
    """Remove the placement group of a controller that is gone, if it is still there."""
    group = ray.get(monitor.placement_group.remote())
    if group is not None:
        remove_placement_group(group)
