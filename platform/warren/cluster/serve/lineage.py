"""The lineage of a checkpoint, gathered from its run, the runs and models before it, and its datasets."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from warren.data.contamination_certificate import decontamination
from warren.data.manifest import read_manifest
from warren.errors import DataError, ReleaseError, StorageError
from warren.evaluate.identity import Identity
from warren.release import (
    Decontamination,
    EvaluationReference,
    Lineage,
    ParentModel,
    TrainingDataset,
    read_release,
)
from warren.release.lineage import datasets_of
from warren.storage import Location
from warren.train.checkpoint import CheckpointManifest
from warren.train.run import Run

_TYPED = ("stage", "fingerprint", "datasets", "packages", "git_revision", "parents")


def lineage_of(root: Location, run: Run, checkpoint: CheckpointManifest, measured: Identity) -> Lineage:
    """Return what a checkpoint was made of and how it was measured.

    Args:
        root: Where datasets, runs and releases live.
        measured: Identifies the evaluation that the release rests on.
    """
    record: Mapping[str, Any] = checkpoint.run
    parents = _parents(root, record)
    return Lineage(
        run=run.name,
        step=checkpoint.step,
        stage=record.get("stage", ""),
        fingerprint=record.get("fingerprint", ""),
        datasets=tuple(_certified(root, dataset) for dataset in _datasets(root, record, {run.name})),
        evaluations=(EvaluationReference(**asdict(measured)),),
        parents=parents,
        git_revision=record.get("git_revision", ""),
        packages=record.get("packages") or {},
        # The rest is kept as the run recorded it.
        record={key: value for key, value in record.items() if key not in _TYPED},
    )


def _parents(root: Location, record: Mapping[str, Any]) -> tuple[ParentModel, ...]:
    """Return the models that a run is an average of, or the one that it started from."""
    averaged = record.get("parents") or []
    first_weight = (record.get("recipe") or {}).get("average", {}).get("first_weight")
    weights = [None, None] if first_weight is None else [first_weight, round(1.0 - first_weight, 9)]
    if averaged:
        return tuple(
            ParentModel("average", each["run"], each["step"], fingerprint=each.get("fingerprint", ""), weight=weight)
            for each, weight in zip(averaged, weights, strict=True)
        )
    origin = record.get("origin") or {}
    if "run" in origin:
        before = Run.of(root, origin["run"]).record() or {}
        return (
            ParentModel("origin", origin["run"], record.get("origin_step"), fingerprint=before.get("fingerprint", "")),
        )
    return (ParentModel("origin", model=origin["model"]),) if "model" in origin else ()


def _datasets(root: Location, record: Mapping[str, Any], seen: set[str]) -> list[TrainingDataset]:
    """Return what a run and the models before it were trained on, each dataset once, sorted by reference.

    Args:
        seen: Runs that were looked at.
    """
    datasets = list(datasets_of(record.get("datasets") or {}, record.get("stage", "")))
    for averaged in record.get("parents") or []:
        datasets += _datasets(root, averaged, seen)
    origin = record.get("origin") or {}
    if (run := origin.get("run", "")) and run not in seen:
        datasets += _datasets(root, Run.of(root, run).record() or {}, seen | {run})
    datasets += _of_release(origin.get("model", ""))
    # A dict keeps the last of equal keys, and a model's own record comes first in the list.
    own_first = {dataset.reference: dataset for dataset in reversed(datasets)}
    return [own_first[reference] for reference in sorted(own_first)]


def _of_release(model: str) -> tuple[TrainingDataset, ...]:
    """Return what a model folder was trained on, if it is a release; others do not say."""
    if ParentModel("origin", model=model).release is None:
        return ()
    try:
        return read_release(Location.parse(model)).lineage.datasets
    except (ReleaseError, StorageError):  # it is gone
        return ()


def _certified(root: Location, dataset: TrainingDataset) -> TrainingDataset:
    """Add what is known of a dataset that an earlier Warren did not record, if it is still the same one."""
    if dataset.decontamination is not None:
        return dataset
    try:
        manifest = read_manifest(root, dataset.reference)
    except (DataError, StorageError):  # it is gone, which does not matter to the model
        return dataset
    if manifest.digest != dataset.digest:
        return dataset
    return replace(dataset, decontamination=Decontamination(**decontamination(root, manifest)))
