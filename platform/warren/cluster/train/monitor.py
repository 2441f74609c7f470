"""The run monitor: an actor through which the workers and Ray Train's controller report to the driver."""

import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from warren.errors import WarrenError
from warren.train.checkpoint import CheckpointManifest
from warren.train.recovery_time import AttemptEvent, Recovery
from warren.train.step_metrics import StepMetrics


def start_monitor() -> Any:
    """Start a run monitor on the driver's node: the loss of a worker's node must not take it away."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(RunMonitor).options(num_cpus=0, scheduling_strategy=here).remote()


@dataclass(frozen=True)
class RunHealth:
    """What a job's run has been through.

    Attributes:
        recoveries: One for every attempt after the first.
        without_workers_s: For how long there have been no workers; 0 while there are some.
        checkpoint_time_s: When the newest checkpoint was committed; before the first one, when the job began.
        checkpoint_step: The steps in that checkpoint; None before the first one.
        num_checkpoints: Checkpoints that were committed.
        num_checkpoint_failures: Checkpoints that could not be written or committed.
    """

    recoveries: tuple[Recovery, ...]
    without_workers_s: float
    checkpoint_time_s: float
    checkpoint_step: int | None
    num_checkpoints: int
    num_checkpoint_failures: int


class RunMonitor:
    """Holds what the driver shows and what the workers of one run must agree on. Reports never wait for a reader."""

    def __init__(self) -> None:
        self._newest: StepMetrics | None = None
        self._untaken: list[StepMetrics] = []
        self._error: WarrenError | None = None
        self._events: dict[AttemptEvent, float] = {}
        self._recoveries: list[Recovery] = []
        self._start: CheckpointManifest | None = None
        self._stop_requested = self._has_stopped = False
        self._without_workers_since: float | None = time.time()
        self._placement_group: PlacementGroup | None = None
        self._committed: list[int] = []
        self._failed_checkpoints: set[int] = set()
        self._checkpoint_time_s = time.time()

    def set_placement_group(self, group: PlacementGroup) -> None:
        """Record the placement group of the newest workers."""
        self._placement_group = group

    def placement_group(self) -> PlacementGroup | None:
        """Return the placement group of the newest workers."""
        return self._placement_group

    def set_start(self, checkpoint: CheckpointManifest | None) -> None:
        """Record the checkpoint that the next workers go on from; None means from the beginning."""
        self._start = checkpoint

    def start(self) -> CheckpointManifest | None:
        """Return the checkpoint that the newest workers go on from."""
        return self._start

    def report_metrics(self, row: StepMetrics) -> None:
        """Take the metrics of a step; the first step after a restart completes a recovery."""
        if "loaded" in self._events:
            if self._newest is not None:
                last, first = (self._newest["step"], self._newest["time"]), (row["step"], row["time"])
                self._recoveries.append(Recovery.between(last, self._events, first))
            self._events = {}
        self._newest = row
        self._untaken.append(row)

    def take_metrics(self) -> list[StepMetrics]:
        """Return the metrics reported since the last call."""
        rows, self._untaken = self._untaken, []
        return rows

    def report_checkpoint(self, step: int, is_committed: bool) -> None:
        """Take the outcome of a checkpoint. Several ranks may report the same failure."""
        if is_committed:
            self._committed.append(step)
            self._checkpoint_time_s = time.time()
        else:
            self._failed_checkpoints.add(step)

    def health(self) -> RunHealth:
        """Return what the run has been through."""
        return RunHealth(
            recoveries=tuple(self._recoveries),
            without_workers_s=self.without_workers_s(),
            checkpoint_time_s=self._checkpoint_time_s,
            checkpoint_step=self._committed[-1] if self._committed else None,
            num_checkpoints=len(self._committed),
            num_checkpoint_failures=len(self._failed_checkpoints),
        )

    def record_event(self, event: AttemptEvent, time_s: float) -> None:
        """Record when an event of an attempt happened; only the first of each kind counts."""
        self._events.setdefault(event, time_s)
        if event == "failed":
            self._without_workers_since = self._without_workers_since or time_s
        elif event == "started":
            self._without_workers_since = None

    def without_workers_s(self) -> float:
        """Return for how long the run has had no workers; 0 while it has some."""
        return 0.0 if self._without_workers_since is None else time.time() - self._without_workers_since

    def recoveries(self) -> list[Recovery]:
        """Return the recovery of every attempt after the first."""
        return self._recoveries

    def report_error(self, error: WarrenError) -> None:
        """Take an error that ends an attempt; the first one is kept."""
        self._error = self._error or error

    def take_error(self) -> WarrenError | None:
        """Return the error that ended an attempt, if any, and forget it."""
        error, self._error = self._error, None
        return error

    def request_stop(self) -> None:
        """Ask the workers to commit a checkpoint and stop."""
        self._stop_requested, self._has_stopped = True, False

    def stop_requested(self) -> bool:
        """Return whether the workers have to stop."""
        return self._stop_requested

    def report_stopped(self) -> None:
        """Take a worker's word that it has stopped; each says so only after all have committed."""
        self._has_stopped = True

    def has_stopped(self) -> bool:
        """Return whether a worker has stopped since the request."""
        return self._has_stopped

    def clear_stop_request(self) -> None:
        """Let the next workers train."""
        self._stop_requested = False
