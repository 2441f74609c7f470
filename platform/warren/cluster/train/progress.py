"""A run's progress while the driver waits: a bar on a terminal, a line now and then in a log."""

import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from tqdm import tqdm

from warren.cluster.capacity import has_room, waiting
from warren.cluster.train.gauges import Gauges
from warren.cluster.train.monitor import RunHealth
from warren.train.recovery_time import Recovery
from warren.train.step_metrics import StepMetrics
from warren.train.trackers import Tracker

_POLL_S = 1.0
_LINE_EVERY_S = 10.0
_WAITING_LINE_EVERY_S = 30.0


class Progress:
    """Shows progress in a thread from the run monitor's metrics, and passes these on to the trackers.

    Args:
        monitor: The run monitor.
        title: The run's name.
        num_steps: Steps of the whole run.
        trackers: Get every step's metrics; they are closed at the end.
        workers: The workers that the run waits for while it has none, in words.
        fewest: CPUs and GPUs of the fewest workers that it can train with.
    """

    def __init__(
        self,
        monitor: Any,
        title: str,
        num_steps: int,
        trackers: Sequence[Tracker],
        workers: str,
        fewest: tuple[float, float],
    ) -> None:
        self._monitor, self._title, self._num_steps = monitor, title, num_steps
        self._workers, self._fewest = workers, fewest
        self._waiting_line_s = 0.0
        self._gauges = Gauges(title, num_steps)
        self._trackers = [*trackers, self._gauges]
        self._scores: list[tuple[int, Mapping[str, float]]] = []
        self._note = ""
        self._rate = _Rate()
        self._num_shown_recoveries = 0
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

    def say(self, text: str) -> None:
        """Print a line beside the bar."""
        tqdm.write(text, file=sys.stderr)
        sys.stderr.flush()

    def show_scores(self, step: int, scores: Mapping[str, float], note: str) -> None:
        """Take the scores of the checkpoint at a step; the trackers get them in their own thread.

        Args:
            note: What the progress line says of them from now on.
        """
        self._note = note
        self._scores.append((step, scores))

    def _show(self) -> None:
        terminal = sys.stderr.isatty()
        printed = 0.0
        with tqdm(total=self._num_steps, desc=self._title, unit="step", disable=not terminal) as bar:
            while not self._stop.wait(_POLL_S):
                row, health = self._log()
                if row is None:
                    self._show_waiting(health.without_workers_s)
                    continue
                if self._rate.first_step is None:
                    self._rate.start(row["step"])
                    bar.initial = bar.n = row["step"]
                bar.n = row["step"] + 1
                bar.set_postfix(loss=f"{row['loss']:.3f}", tokens_per_s=f"{row['tokens_per_s']:.0f}", refresh=True)
                self._show_recoveries(row, health.recoveries)
                if not terminal and time.monotonic() - printed > _LINE_EVERY_S:
                    printed = time.monotonic()
                    print(self._line(row), file=sys.stderr, flush=True)

    def _log(self) -> tuple[StepMetrics | None, RunHealth]:
        """Pass new metrics on to the trackers, and return the newest."""
        rows: list[StepMetrics] = ray.get(self._monitor.take_metrics.remote())
        health: RunHealth = ray.get(self._monitor.health.remote())
        for tracker in self._trackers:
            for row in rows:
                tracker.log(row)
        while self._scores:
            step, scores = self._scores.pop(0)
            for tracker in self._trackers:
                tracker.log_scores(step, scores)
        self._gauges.show_health(health)
        return rows[-1] if rows else None, health

    def _show_recoveries(self, row: StepMetrics, recoveries: Sequence[Recovery]) -> None:
        """Print the recoveries since the last call; the rate counts from the newest on."""
        for recovery in recoveries[self._num_shown_recoveries :]:
            tqdm.write(f"{self._title}: {recovery}", file=sys.stderr)
            self._rate.start(row["step"])
        self._num_shown_recoveries = len(recoveries)

    def _show_waiting(self, waited_s: float) -> None:
        """Print now and then which workers the run waits for."""
        self._waiting_line_s = min(self._waiting_line_s, waited_s)
        if waited_s - self._waiting_line_s > _WAITING_LINE_EVERY_S:
            self._waiting_line_s = waited_s
            doing = f"starting {self._workers}" if has_room(*self._fewest) else waiting(self._workers)
            tqdm.write(f"{self._title}: {doing}, for {waited_s:.0f} s", file=sys.stderr)

    def _line(self, row: StepMetrics) -> str:
        rate = self._rate.steps_per_s(row["step"])
        left = f"{(self._num_steps - row['step'] - 1) / rate:4.0f} s left" if rate else "starting"
        waits = row["data_wait_s"] / row["step_s"]
        extra = f"  {row['samples_quarantined']} samples quarantined" if row["samples_quarantined"] else ""
        if row["samples_cut"]:
            extra += f"  {row['samples_cut']} samples cut, by {row['supervised_tokens_cut']} supervised tokens"
        extra += f"  {self._note}" if self._note else ""
        return (
            f"{self._title}: step {row['step'] + 1}/{self._num_steps}  loss {row['loss']:.4f}  "
            f"lr {row['learning_rate']:.1e}  {rate * row['samples']:.0f} samples/s  "
            f"{row['tokens_per_s']:.0f} tokens/s  waiting for data {waits:.0%}{extra}  {left}"
        )


class _Rate:
    """Steps per second since the run began or recovered."""

    def __init__(self) -> None:
        self.first_step: int | None = None
        self._began = time.monotonic()

    def start(self, step: int) -> None:
        """Count from `step` and now on."""
        self.first_step, self._began = step, time.monotonic()

    def steps_per_s(self, step: int) -> float:
        """Return the rate up to `step`; 0 while it is not known."""
        steps, elapsed_s = step - (self.first_step or 0), time.monotonic() - self._began
        return steps / elapsed_s if steps and elapsed_s else 0.0
