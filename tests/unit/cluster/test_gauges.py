"""What Prometheus sees of a run: every value again and again, because Ray's agents forget."""

from typing import Any

import pytest

from warren.cluster.train import gauges as module
from warren.cluster.train.gauges import Gauges
from warren.cluster.train.monitor import RunMonitor
from warren.metrics import TRAINING_METRICS


def test_every_value_is_set_again_with_the_runs_health(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[str, float]] = []

    class Gauge:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            assert tag_keys == ("run",)
            self._name = name

        def set(self, value: float, tags: dict[str, str]) -> None:
            assert tags == {"run": "r"}
            shown.append((self._name, value))

    monkeypatch.setattr(module, "Gauge", Gauge)
    gauges, monitor = Gauges("r", 10), RunMonitor()
    row: Any = {"step": 3, "time": 1.0, "loss": 0.5, "skipped": "", "epoch": 0}
    gauges.log(row)
    monitor.report_checkpoint(4, True)
    for _ in range(2):
        shown.clear()
        gauges.show_health(monitor.health())
        values = dict(shown)
        assert values["warren_train_num_steps"] == 10
        assert (values["warren_train_step"], values["warren_train_loss"]) == (3, 0.5)
        assert (values["warren_train_checkpoints"], values["warren_train_checkpoint_step"]) == (1, 4)
        assert "warren_train_recovery_s" not in values
        assert values.keys() <= {spec.name for spec in TRAINING_METRICS}
