"""The workers' placement group, which outlives a controller that died: the driver removes it before the next attempt.

Ray Train has a detached actor for that, which leaks. It begins to watch when the controller calls it, so a controller
that ends earlier, for example by `ray job stop` during start-up, leaves it behind for ever; nor does it end once the
controller is gone. Nothing here is detached: an actor of the driver ends with the driver, and Ray then removes its
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
