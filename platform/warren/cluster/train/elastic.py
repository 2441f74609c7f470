"""Elastic runs, whose number of workers changes: a checkpoint before each change, and no workers on nodes that leave.

Ray Train's elastic policy ends the workers at once when there is room for more of them, or for fewer. A callback of its
controller first asks them for a checkpoint, and lets the policy go on once they have stopped.
"""

import time
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError

from warren.compat.ray_data import recount_resources
from warren.compat.ray_train import ControllerMoments

_POLL_S = 0.1
_RECOUNT_TIMEOUT_S = 5.0


class CheckpointBeforeResize(ControllerMoments):
    """Runs in Ray Train's controller.

    Args:
        monitor: The run monitor, which passes the request to stop on to the workers.
        timeout_s: How long they have; workers that are ended later go on from their newest checkpoint.
    """

    def __init__(self, monitor: Any, timeout_s: float) -> None:
        self._monitor, self._timeout_s = monitor, timeout_s

    def before_resize(self) -> None:
        """Wait for the workers' checkpoint before they are replaced."""
        ray.get(self._monitor.request_stop.remote())
        deadline = time.monotonic() + self._timeout_s
        while not ray.get(self._monitor.has_stopped.remote()) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        ray.get(self._monitor.record_event.remote("failed", time.time()))
        ray.get(self._monitor.clear_stop_request.remote())

    def before_restart(self) -> None:
        """Have the nodes counted anew after a loss, so that nothing is started on one that is gone."""
        with suppress(RayError):
            recount_resources(_RECOUNT_TIMEOUT_S)
