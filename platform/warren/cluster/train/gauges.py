"""A run's newest metrics for Prometheus, through Ray's metrics agent."""

from collections.abc import Mapping

from ray.util.metrics import Gauge

from warren.train.step_metrics import StepMetrics, numbers


class Gauges:
    """A tracker that shows the newest step's metrics as `ray_warren_train_…`, tagged with the run's name."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Gauge] = {}

    def log(self, row: StepMetrics) -> None:
        """Show a step's metrics."""
        for name, value in {**numbers(row), "step": row["step"]}.items():
            if name not in self._gauges:
                self._gauges[name] = Gauge(f"warren_train_{name}", f"{name} of the newest step", tag_keys=("run",))
            self._gauges[name].set(value, tags={"run": self._run})

    def log_scores(self, step: int, scores: Mapping[str, float]) -> None:
        """Show the scores of the checkpoint that was evaluated last, and its step."""
        name = "evaluation_score"
        if name not in self._gauges:
            self._gauges[name] = Gauge(
                f"warren_train_{name}", "score of the checkpoint that was evaluated last", tag_keys=("run", "score")
            )
            description = "step of the checkpoint that was evaluated last"
            self._gauges["evaluated_step"] = Gauge("warren_train_evaluated_step", description, tag_keys=("run",))
        for score, value in scores.items():
            self._gauges[name].set(value, tags={"run": self._run, "score": score})
        self._gauges["evaluated_step"].set(step, tags={"run": self._run})

    def close(self) -> None:
        """Leave the last values in place until the driver ends."""
