"""The run monitor, called without Ray: what the driver learns of its workers, and they of each other."""

from typing import Any

import pytest

from warren.cluster.train import monitor as module
from warren.cluster.train.monitor import RunMonitor
from warren.errors import CheckpointError, TrainingError
from warren.train.checkpoint import CheckpointManifest


def row(step: int, time: float) -> Any:
    return {"step": step, "time": time, "loss": 1.0}


def test_metrics_are_taken_once_and_in_order() -> None:
    monitor = RunMonitor()
    for step in range(3):
        monitor.report_metrics(row(step, float(step)))
    assert [each["step"] for each in monitor.take_metrics()] == [0, 1, 2]
    assert monitor.take_metrics() == []


def test_the_first_step_after_a_restart_completes_a_recovery_and_the_first_attempt_is_none() -> None:
    monitor = RunMonitor()
    monitor.record_event("started", 90.0)
    monitor.record_event("loaded", 95.0)
    monitor.report_metrics(row(0, 100.0))
    assert monitor.recoveries() == []
    for event, time_s in (("failed", 101.0), ("failed", 105.0), ("started", 110.0), ("loaded", 114.0)):
        monitor.record_event(event, time_s)  # type: ignore[arg-type]
    monitor.report_metrics(row(0, 117.5))
    monitor.report_metrics(row(1, 118.0))
    (recovery,) = monitor.recoveries()
    assert (recovery.last_step, recovery.next_step, recovery.detect_s, recovery.restart_s) == (0, 0, 1.0, 9.0)
    assert (recovery.load_s, recovery.first_step_s, recovery.total_s) == (4.0, 3.5, 17.5)


def test_it_knows_for_how_long_there_have_been_no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.time, "time", lambda: 50.0)
    monitor = RunMonitor()
    monkeypatch.setattr(module.time, "time", lambda: 60.0)
    assert monitor.without_workers_s() == 10.0
    monitor.record_event("started", 61.0)
    assert monitor.without_workers_s() == 0.0
    monitor.record_event("failed", 52.0)
    assert monitor.without_workers_s() == 8.0


def test_the_first_error_counts_and_is_taken_once() -> None:
    monitor = RunMonitor()
    monitor.report_error(CheckpointError("first"))
    monitor.report_error(TrainingError("second"))
    assert str(monitor.take_error()) == "first"
    assert monitor.take_error() is None


def test_a_request_to_stop_is_answered_anew_each_time() -> None:
    monitor = RunMonitor()
    for _ in range(2):
        monitor.request_stop()
        assert (monitor.stop_requested(), monitor.has_stopped()) == (True, False)
        monitor.report_stopped()
        assert monitor.has_stopped()
        monitor.clear_stop_request()
        assert not monitor.stop_requested()


def test_all_ranks_are_handed_the_checkpoint_that_the_data_starts_from() -> None:
    monitor = RunMonitor()
    assert monitor.start() is None
    manifest = CheckpointManifest(4, 2, 2, "f", ())
    monitor.set_start(manifest)
    assert monitor.start() == manifest
    monitor.set_start(None)
    assert monitor.start() is None


def test_outcomes_of_checkpoints_are_counted_once_whoever_reports_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.time, "time", lambda: 50.0)
    monitor = RunMonitor()
    assert (monitor.health().checkpoint_step, monitor.health().checkpoint_time_s) == (None, 50.0)
    monkeypatch.setattr(module.time, "time", lambda: 70.0)
    monitor.report_checkpoint(4, True)
    monitor.report_checkpoint(8, False)
    monitor.report_checkpoint(8, False)
    health = monitor.health()
    assert (health.checkpoint_step, health.checkpoint_time_s) == (4, 70.0)
    assert (health.num_checkpoints, health.num_checkpoint_failures) == (1, 1)
