"""A run's newest metrics for Prometheus, through Ray's metrics agent."""

from collections.abc import Mapping

from ray.util.metrics import Gauge

from warren import metrics as declared
from warren.cluster.train.monitor import RunHealth
from warren.metrics import MetricSpec
from warren.train.step_metrics import StepMetrics, numbers

_STEP_METRICS = {spec.name.removeprefix("warren_train_"): spec for spec in declared.STEP_METRICS}


class Gauges:
    """A tracker that shows a run's newest metrics as `ray_warren_train_…`, tagged with the run's name.

    Ray's agents forget a gauge that is not set for some 20 seconds, and a step may take longer. So every value is set
    again whenever the run's health is shown, which is every second.
    """

    def __init__(self, run: str, num_steps: int) -> None:
        self._run = run
        self._gauges: dict[str, Gauge] = {}
        self._values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._set(declared.TRAIN_NUM_STEPS, num_steps)

    def log(self, row: StepMetrics) -> None:
        """Take a step's metrics."""
        for name, value in {**numbers(row), "step": row["step"]}.items():
            self._set(_STEP_METRICS[name], value)

    def show_health(self, health: RunHealth) -> None:
        """Show what the run has been through."""
        self._set(declared.TRAIN_CHECKPOINT_TIME, health.checkpoint_time_s)
        self._set(declared.TRAIN_CHECKPOINTS, health.num_checkpoints)
        self._set(declared.TRAIN_CHECKPOINT_FAILURES, health.num_checkpoint_failures)
        self._set(declared.TRAIN_RECOVERIES, len(health.recoveries))
        self._set(declared.TRAIN_WITHOUT_WORKERS_S, health.without_workers_s)
        if health.checkpoint_step is not None:
            self._set(declared.TRAIN_CHECKPOINT_STEP, health.checkpoint_step)
        if health.recoveries:
            self._set(declared.TRAIN_RECOVERY_S, health.recoveries[-1].total_s)
        for (name, labels), value in self._values.items():
            self._gauges[name].set(value, tags={"run": self._run, **dict(labels)})

    def log_scores(self, step: int, scores: Mapping[str, float]) -> None:
        """Take the scores of the checkpoint that was evaluated last, and its step."""
        self._set(declared.TRAIN_EVALUATED_STEP, step)
        for score, value in scores.items():
            self._set(declared.TRAIN_SCORE, value, score=score)

    def close(self) -> None:
        """Leave the last values in place; they go with the driver."""

    def _set(self, spec: MetricSpec, value: float, **labels: str) -> None:
        if spec.name not in self._gauges:
            self._gauges[spec.name] = Gauge(spec.name, spec.meaning, tag_keys=spec.labels)
        self._values[spec.name, tuple(labels.items())] = value
