"""Which ends of an attempt are followed by another attempt, and from which budget.

Ray Train restarts lost workers by itself as long as its controller lives. Two cases are left and decided here: the
controller died, or the workers stopped for a preemption after they had committed a checkpoint.
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
    """Reports to the run monitor when Ray Train's controller learns that a worker is gone."""

    def __init__(self, monitor: Any) -> None:
        self._monitor = monitor

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Report the time."""
        self._monitor.record_event.remote("failed", time.time())


@dataclass
class FailurePolicy:
    """Runs attempts until one is complete.

    Attributes:
        attempt: Runs one attempt; returns when its workers have ended.
        is_complete: Returns whether the run's last step is in its newest checkpoint.
        on_failure: Called when an attempt's controller has died, or its workers stopped for a preemption.
        max_failures: How many controllers may die.
        max_preemptions: How many attempts may stop for a preemption.
    """

    attempt: Callable[[], None]
    is_complete: Callable[[], bool]
    on_failure: Callable[[], None]
    max_failures: int
    max_preemptions: int

    def run(self) -> None:
        """Run attempts.

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
                    f"the run was preempted {preemptions} times, more than resources.max_preemptions="
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
    """Return whether a node will be preempted or the run will be resized; every rank must call it at once."""
    if ray.train.get_preemption_info() is not None:
        return True
    is_first = ray.train.get_context().get_world_rank() == 0
    requested = ray.get(monitor.stop_requested.remote()) if is_first else None
    return bool(broadcast_from_rank_zero(requested))
