"""A run's newest metrics for Prometheus, through Ray's metrics agent."""

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

    def close(self) -> None:
        """Leave the last values in place until the driver ends."""
