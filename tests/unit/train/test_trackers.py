"""Metrics as people see them: TensorBoard files and the report, beside the run."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from warren.errors import ConfigError
from warren.storage import Location
from warren.train.checkpoint import CheckpointManifest
from warren.train.recovery_time import Recovery
from warren.train.run import Run
from warren.train.run_report import summary, write_report
from warren.train.trackers import open_trackers


def row(step: int, **changes: Any) -> Any:
    metrics = {
        "step": step, "time": 1e9 + step, "loss": 2.0 / (step + 1), "grad_norm": 1.0, "learning_rate": 1e-3,
        "supervised_tokens": 9, "samples": 8, "tokens": 400, "skipped": "", "step_s": 2.0, "data_wait_s": 0.5,
        "checkpoint_stall_s": 0.1,
        "rank_skew_s": 0.2, "tokens_per_s": 200.0, "tflops_per_s": 3.0, "tflops_per_s_text": 2.0,
    }  # fmt: skip
    return {**metrics, **changes}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(Location.parse(str(tmp_path / "runs/r")))


def scalars(folder: Location) -> dict[str, list[tuple[int, float]]]:
    """Read event files: records of a length, its checksum, an event and its checksum."""
    found: dict[str, list[tuple[int, float]]] = {}
    for file in folder.list():
        data, at = file.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
            at += 16 + length
    return found


def test_tensorboard_reads_what_was_logged(run: Run) -> None:
    [tracker] = open_trackers(["tensorboard"], run, {}, first_step=0)
    for step in range(3):
        tracker.log(row(step, loss=float("nan") if step == 1 else 2.0))
    tracker.log_scores(2, {"test@v1/exact_match": 0.5})  # of a checkpoint that later steps have followed
    tracker.close()
    found = scalars(run.folder / "tensorboard")
    assert found["train/tokens_per_s"] == [(0, 200.0), (1, 200.0), (2, 200.0)]
    assert found["train/loss"] == [(0, 2.0), (2, 2.0)]
    assert found["evaluation/test_v1/exact_match"] == [(1, 0.5)]


def test_a_tracker_that_is_not_installed_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"names wandb, which is not installed: pip install .*trackers"):
        open_trackers(["wandb"], run, {}, first_step=0)


def log_and_go_on(name: str, run: Run) -> None:
    """Train three steps, die, go on from the second."""
    for steps in (range(3), range(2, 5)):
        [tracker] = open_trackers([name], run, {"fingerprint": "f", "recipe": {"a": {"b": 1}}}, first_step=steps[0])
        for step in steps:
            tracker.log(row(step, loss=10.0 * step, grad_norm=float("nan")))
        tracker.log_scores(steps[0] + 1, {"test@v1/exact_match": 0.5})
        tracker.close()


def test_mlflow_has_one_run_with_every_step(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra `trackers` is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    mlflow.set_tracking_uri(f"file://{tmp_path}/mlruns")
    log_and_go_on("mlflow", run)
    [found] = mlflow.search_runs(experiment_names=["warren"], output_format="list")
    assert (found.info.run_name, found.data.tags["fingerprint"]) == ("r", "f")
    history = mlflow.MlflowClient().get_metric_history(found.info.run_id, "loss")
    assert {(point.step, point.value) for point in history} == {(step, 10.0 * step) for step in range(5)}
    assert "grad_norm" not in found.data.metrics
    assert found.data.metrics["evaluation/test_v1/exact_match"] == 0.5


def test_wandb_has_one_run_with_every_step(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra `trackers` is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    log_and_go_on("wandb", run)
    logs = [file.read_bytes() for file in tmp_path.rglob("run-r.wandb")]  # one an attempt; syncing joins them by the id
    assert len(logs) == 2
    assert all(b"loss" in log and b"grad_norm" not in log for log in logs)


def test_the_report_tells_what_it_was_how_it_went_and_what_was_left_out(run: Run, tmp_path: Path) -> None:
    rows = [
        row(0, step_s=60.0),
        row(1),
        row(2, skipped="the loss is nan", loss=float("nan")),
        row(3, mfu=0.4, mfu_text=0.3, samples_quarantined=5, samples_cut=3, supervised_tokens_cut=40),
    ]
    metrics = tmp_path / "local/ranks/metrics.jsonl"
    metrics.parent.mkdir(parents=True)
    metrics.write_text("".join(json.dumps(each) + "\n" for each in rows))
    files = run.checkpoints.upload(4, "a1", tmp_path / "local")
    run.checkpoints.commit(CheckpointManifest(4, 1, 2, "f", tuple(files), {}))
    recovery = Recovery(1, 1, detect_s=1.0, restart_s=9.0, load_s=2.0, first_step_s=1.0, total_s=13.0)
    report = write_report(run, {"stage": "pretrain"}, [recovery])
    assert write_report(run, {"stage": "pretrain"}, [recovery]) == report
    text = report.read_bytes().decode()
    assert "| data wait fraction | 0.25 |" in text
    assert "| tokens per s | 200 |" in text
    assert "| samples quarantined | 5 |" in text
    assert "| supervised tokens cut | 40 |" in text
    assert "* r: 5 samples could not be used" in text
    assert "* r: 3 samples were longer than max_length_tokens and lost 40 supervised tokens" in text
    assert "| 2 | the loss is nan |" in text
    assert "| 1 | 1 | 1 | 9 | 2 | 1 | 13 |" in text
    assert '"stage": "pretrain"' in text
    assert (Path(run.folder.uri) / "report" / "loss.png").stat().st_size > 5_000
    assert summary(rows)["mfu"] == 0.4
