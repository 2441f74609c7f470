"""The board: where a run's workers pin metrics, marks of time and the error that ends the run; and what shows them."""

import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.util.metrics import Gauge
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tqdm import tqdm

from warren.cluster.capacity import waiting
from warren.compat.ray_core import job_has_room
from warren.errors import WarrenError
from warren.train.trackers import StepMetrics, Tracker, numbers

_POLL_S = 1.0
_LINE_EVERY_S = 10.0
_ABSENCE_LINE_EVERY_S = 30.0


def start_monitor() -> Any:
    """Start a board beside the driver: a node that is lost takes the workers' marks with it otherwise."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return RunMonitor.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]


@ray.remote(num_cpus=0)
class RunMonitor:
    """Holds what the driver shows. Writers never wait for it."""

    def __init__(self) -> None:
        self._row: dict[str, Any] = {}
        self._error: WarrenError | None = None
        self._marks: dict[str, float] = {}
        self._recoveries: list[dict[str, Any]] = []
        self._untaken: list[dict[str, Any]] = []
        self._asks = self._given = False
        self._absent_since: float | None = time.time()
        self._group: PlacementGroup | None = None

    def note_group(self, group: PlacementGroup) -> None:
        """Note the placement group that the workers are in."""
        self._group = group

    def group(self) -> PlacementGroup | None:
        """Return the placement group of the newest workers."""
        return self._group

    def pin(self, row: dict[str, Any]) -> None:
        """Replace the newest metrics."""
        if "loaded" in self._marks:
            if self._row:
                self._recoveries.append(_recovery(self._row, self._marks, row))
            self._marks = {}
        self._row = row
        self._untaken.append(row)

    def mark(self, event: str, time_s: float) -> None:
        """Note when an attempt's `failed`, `entered` or `loaded` came to pass; the first of each kind counts."""
        self._marks.setdefault(event, time_s)
        if event == "failed":
            self._absent_since = self._absent_since or time_s
        elif event == "entered":
            self._absent_since = None

    def absent_s(self) -> float:
        """Return for how long there have been no workers; 0 while there are."""
        return 0.0 if self._absent_since is None else time.time() - self._absent_since

    def recoveries(self) -> list[dict[str, Any]]:
        """Return, for every attempt after the first, how long it took from the last step to the next."""
        return self._recoveries

    def fail(self, error: WarrenError) -> None:
        """Pin the first error that ends an attempt."""
        self._error = self._error or error

    def request_stop(self) -> None:
        """Ask the workers to commit a checkpoint and end."""
        self._asks, self._given = True, False

    def stop_requested(self) -> bool:
        """Tell a worker whether it has to."""
        return self._asks

    def note_stopped(self) -> None:
        """Note that a worker has ended; each does so only after what all have committed."""
        self._given = True

    def has_stopped(self) -> bool:
        """Tell whether a worker has ended since it was asked."""
        return self._given

    def clear_stop_request(self) -> None:
        """Let the workers that come next train."""
        self._asks = False

    def take(self) -> list[dict[str, Any]]:
        """Return the metrics pinned since the last time they were taken."""
        rows, self._untaken = self._untaken, []
        return rows

    def take_error(self) -> WarrenError | None:
        """Return the error that ended an attempt, if any, and forget it."""
        error, self._error = self._error, None
        return error


def _recovery(last: dict[str, Any], marks: dict[str, float], row: dict[str, Any]) -> dict[str, Any]:
    """Split the time between two steps: until the failure was noticed, workers were back, had loaded, had trained."""
    entered, loaded = marks.get("entered", marks["loaded"]), marks["loaded"]
    failed = marks.get("failed", entered)
    return {
        "last_step": last["step"],
        "next_step": row["step"],
        "detect_s": failed - last["time"],
        "restart_s": entered - failed,
        "load_s": loaded - entered,
        "first_step_s": row["time"] - loaded,
        "total_s": row["time"] - last["time"],
    }


class Gauges:
    """Shows the newest metrics to Prometheus, as `ray_warren_train_…` with the run's name."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Gauge] = {}

    def log(self, row: StepMetrics) -> None:
        """Show a step's metrics."""
        for name, value in {**numbers(row), "step": row["step"]}.items():
            if name not in self._gauges:
                self._gauges[name] = Gauge(f"warren_train_{name}", f"{name} of the newest step", tag_keys=("run",))
            self._gauges[name].set(value, tags={"run": self._run})

    def close(self) -> None:
        """Leave the last figures standing until the driver ends."""


class Progress:
    """Shows a run's progress while the driver waits: a bar on a terminal, a line now and then in a log.

    Args:
        trackers: Get every step's metrics; they are closed at the end.
        wanted: What the run waits for while it has no workers.
    """

    def __init__(self, monitor: Any, title: str, num_steps: int, trackers: Sequence[Tracker], wanted: str) -> None:
        self._monitor, self._title, self._num_steps, self._wanted = monitor, title, num_steps, wanted
        self._absence_told_s = 0.0
        self._trackers = [*trackers, Gauges(title)]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> "Progress":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=5)
        self._log()
        for tracker in self._trackers:
            tracker.close()

    def _show(self) -> None:
        terminal = sys.stderr.isatty()
        first: int | None = None
        printed = 0.0
        shown = 0
        began = time.monotonic()
        with tqdm(total=self._num_steps, desc=self._title, unit="step", disable=not terminal) as bar:
            while not self._stop.wait(_POLL_S):
                row = self._log()
                if row is None:
                    self._tell_absence()
                    continue
                if first is None:
                    first, began = row["step"], time.monotonic()
                    bar.initial = bar.n = first
                bar.n = row["step"] + 1
                bar.set_postfix(loss=f"{row['loss']:.3f}", tokens_per_s=f"{row['tokens_per_s']:.0f}", refresh=True)
                recoveries = ray.get(self._monitor.recoveries.remote())
                for recovery in recoveries[shown:]:
                    tqdm.write(f"{self._title}: {recovered(recovery)}", file=sys.stderr)
                    first, began = row["step"], time.monotonic()
                shown = len(recoveries)
                if not terminal and time.monotonic() - printed > _LINE_EVERY_S:
                    printed = time.monotonic()
                    print(self._line(row, first, printed - began), file=sys.stderr, flush=True)

    def _log(self) -> dict[str, Any] | None:
        """Pass on what is new, and return the newest of it."""
        rows: list[dict[str, Any]] = ray.get(self._monitor.take.remote())
        for tracker in self._trackers:
            for row in rows:
                tracker.log(row)
        return rows[-1] if rows else None

    def _tell_absence(self) -> None:
        """Say now and then what the run waits for."""
        absent_s = ray.get(self._monitor.absent_s.remote())
        self._absence_told_s = min(self._absence_told_s, absent_s)
        if absent_s - self._absence_told_s > _ABSENCE_LINE_EVERY_S:
            self._absence_told_s = absent_s
            doing = f"starting {self._wanted}" if job_has_room() else waiting(self._wanted)
            tqdm.write(f"{self._title}: {doing}, for {absent_s:.0f} s", file=sys.stderr)

    def _line(self, row: dict[str, Any], first: int, elapsed_s: float) -> str:
        steps = row["step"] - first
        rate = steps / elapsed_s if steps and elapsed_s else 0.0
        left = f"{(self._num_steps - row['step'] - 1) / rate:4.0f} s left" if rate else "starting"
        waits = row["data_wait_s"] / row["step_s"]
        bad = f"  {row['samples_quarantined']} samples quarantined" if row["samples_quarantined"] else ""
        if row["samples_cut"]:
            bad += f"  {row['samples_cut']} samples cut, by {row['supervised_tokens_cut']} supervised tokens"
        return (
            f"{self._title}: step {row['step'] + 1}/{self._num_steps}  loss {row['loss']:.4f}  "
            f"lr {row['learning_rate']:.1e}  {rate * row['samples']:.0f} samples/s  "
            f"{row['tokens_per_s']:.0f} tokens/s  waiting for data {waits:.0%}{bad}  {left}"
        )


def recovered(recovery: dict[str, Any]) -> str:
    """Say in a line how long a recovery took, and what took it."""
    parts = ", ".join(f"{name} {recovery[f'{name}_s']:.1f}" for name in ("detect", "restart", "load", "first_step"))
    return f"back at step {recovery['next_step']} after {recovery['total_s']:.1f} s ({parts.replace('_', ' ')})"
