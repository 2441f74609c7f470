"""Starting a run again: what is worth another attempt, out of which budget, and how long it took to be back.

Ray Train restarts its workers by itself and keeps the controller. What is left is decided here: a controller that died,
and workers that gave way to a preemption after a checkpoint made just in time.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.train import UserCallback
from ray.train.collective import broadcast_from_rank_zero

from warren.errors import TrainingError, WarrenError, root_cause


class FailureNotice(UserCallback):  # type: ignore[misc]
    """Marks on the board when Ray Train's controller learns that a worker is gone."""

    def __init__(self, monitor: Any) -> None:
        self._monitor = monitor

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Note the time."""
        self._monitor.mark.remote("failed", time.time())


@dataclass
class FailurePolicy:
    """Runs attempts until one is complete.

    Attributes:
        attempt: Runs one; returns when its workers have ended.
        is_complete: Tells whether the run's last step is in its newest checkpoint.
        on_failure: Called when an attempt's controller has died, or its workers gave way.
        max_failures: How many controllers may die.
        max_preemptions: How many attempts may give way.
    """

    attempt: Callable[[], None]
    is_complete: Callable[[], bool]
    on_failure: Callable[[], None]
    max_failures: int
    max_preemptions: int

    def run(self) -> None:
        """Run them.

        Raises:
            WarrenError: The run cannot go on.
            TrainingError: A budget is used up.
        """
        failures = preemptions = 0
        while True:
            try:
                self.attempt()
            except Exception as error:
                failures += 1
                self._judge(error, failures)
                self.on_failure()
                continue
            if self.is_complete():
                return
            preemptions += 1
            self.on_failure()
            if preemptions > self.max_preemptions:
                raise TrainingError(
                    f"the run gave way to {preemptions} preemptions, more than resources.max_preemptions="
                    f"{self.max_preemptions}: start it again to go on from its newest checkpoint"
                )

    def _judge(self, error: Exception, failures: int) -> None:
        known = root_cause(error)
        if isinstance(known, WarrenError) or not isinstance(error, RayActorError):
            raise known from None
        if failures > self.max_failures:
            raise TrainingError(
                f"the run's controller died {failures} times, more than resources.max_failures={self.max_failures} "
                f"({error}): start it again to go on from its newest checkpoint"
            ) from None


def must_stop(monitor: Any) -> bool:
    """Tell whether a node is about to be taken away, or the run is to change its size; every rank must ask at once."""
    if ray.train.get_preemption_info() is not None:
        return True
    is_first = ray.train.get_context().get_world_rank() == 0
    asked = ray.get(monitor.stop_requested.remote()) if is_first else None
    return bool(broadcast_from_rank_zero(asked))
