"""Trackers of a run's metrics: TensorBoard files beside the run, W&B and MLflow."""

import importlib
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

from warren.errors import ConfigError
from warren.storage.scratch import scratch_folder
from warren.train.run import Run
from warren.train.run_record import RunRecord
from warren.train.step_metrics import StepMetrics, numbers

_UPLOAD_EVERY_S = 60.0
_FOREIGN = re.compile(r"[^\w./-]")  # what TensorBoard and MLflow do not take in a metric's name


class Tracker(Protocol):
    """Takes the metrics of steps in order; a step that is trained again after a failure comes twice."""

    def log(self, row: StepMetrics) -> None:
        """Take a step's metrics."""

    def log_scores(self, step: int, scores: Mapping[str, float]) -> None:
        """Take the scores of the checkpoint at a step, which later steps may have followed."""

    def close(self) -> None:
        """Write the metrics that are left, and close."""


class TensorBoard:
    """Writes event files to `tensorboard/` of the run; `tensorboard --logdir` shows that folder, or a copy of it."""

    def __init__(self, run: Run, first_step: int) -> None:
        from tensorboardX import SummaryWriter

        self._held = ExitStack()
        self._folder = self._held.enter_context(scratch_folder("tensorboard"))
        self._writer = SummaryWriter(str(self._folder), purge_step=first_step)
        self._target = run.folder / "tensorboard"
        self._uploaded = time.monotonic()

    def log(self, row: StepMetrics) -> None:
        """Take a step's metrics."""
        for name, value in numbers(row).items():
            self._writer.add_scalar(f"train/{name}", value, row["step"], walltime=row["time"])
        if time.monotonic() - self._uploaded > _UPLOAD_EVERY_S:
            self._upload()

    def log_scores(self, step: int, scores: Mapping[str, float]) -> None:
        """Take the scores of the checkpoint at a step."""
        for name, value in _named(scores).items():
            self._writer.add_scalar(name, value, step - 1)  # the last step that it has taken

    def close(self) -> None:
        """Write the metrics that are left, and close."""
        self._writer.close()
        self._upload()
        self._held.close()

    def _upload(self) -> None:
        self._writer.flush()
        for file in self._folder.iterdir():
            (self._target / file.name).upload(file)
        self._uploaded = time.monotonic()


class WeightsAndBiases:
    """Logs to W&B as `WANDB_*` configures it; a resumed run keeps its id."""

    def __init__(self, run: Run, record: RunRecord) -> None:
        wandb = _library("wandb")
        self._run = wandb.init(project="warren", name=run.name, id=run.name, resume="allow", config=dict(record))
        self._run.define_metric("*", step_metric="step")  # W&B's own counter drops a step that comes again

    def log(self, row: StepMetrics) -> None:
        """Take a step's metrics."""
        self._run.log({**numbers(row), "step": row["step"]})

    def log_scores(self, step: int, scores: Mapping[str, float]) -> None:
        """Take the scores of the checkpoint at a step."""
        self._run.log({**_named(scores), "step": step - 1})

    def close(self) -> None:
        """Write the metrics that are left, and close."""
        self._run.finish()


class MlFlow:
    """Logs to MLflow as `MLFLOW_*` configures it; a resumed run goes on under its name."""

    def __init__(self, run: Run, record: RunRecord) -> None:
        self._mlflow = _library("mlflow")
        self._mlflow.set_experiment("warren")
        named = f"attributes.run_name = '{run.name}'"
        present = self._mlflow.search_runs(filter_string=named, max_results=1, output_format="list")
        self._mlflow.start_run(
            run_id=present[0].info.run_id if present else None,
            run_name=run.name,
            tags={"fingerprint": str(record["fingerprint"])},
        )

    def log(self, row: StepMetrics) -> None:
        """Take a step's metrics."""
        self._mlflow.log_metrics(numbers(row), step=row["step"])

    def log_scores(self, step: int, scores: Mapping[str, float]) -> None:
        """Take the scores of the checkpoint at a step."""
        self._mlflow.log_metrics(_named(scores), step=step - 1)

    def close(self) -> None:
        """Write the metrics that are left, and close."""
        self._mlflow.end_run()


def open_trackers(names: Sequence[str], run: Run, record: RunRecord, first_step: int) -> list[Tracker]:
    """Open the trackers that the resources name.

    Raises:
        ConfigError: The library of one is not installed.
    """
    opened: list[Tracker] = []
    for name in names:
        if name == "tensorboard":
            opened.append(TensorBoard(run, first_step))
        elif name == "wandb":
            opened.append(WeightsAndBiases(run, record))
        else:
            opened.append(MlFlow(run, record))
    return opened


def _named(scores: Mapping[str, float]) -> dict[str, float]:
    """Return scores under names that every tracker takes, such as `evaluation/easy-vqa-test_v1/exact_match`."""
    return {f"evaluation/{_FOREIGN.sub('_', name)}": value for name, value in scores.items()}


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(
            f"resources.trackers names {name}, which is not installed: pip install 'warren-vlm[trackers]'"
        ) from None
