"""The record of a run: configuration, packages, revision, datasets, and what changed since it began.

It is JSON: `run.json` beside the run, in every checkpoint's manifest, and in the lineage of every release.
"""

import time
from collections.abc import Sequence
from typing import Any, Literal, TypedDict

from warren.config import Recipe, Resources, fingerprint
from warren.config.versions import git_revision, package_versions
from warren.data.contamination_certificate import DecontaminationRecord, decontamination
from warren.data.manifest import root_of
from warren.data.stream import DatasetSource


class DatasetRecord(TypedDict, total=False):
    """A dataset as an epoch takes it.

    Attributes:
        decontamination: Which evaluation sets it is free of; records of earlier versions lack it.
    """

    digest: str
    rows: int
    samples_per_epoch: int
    decontamination: DecontaminationRecord


class RecordedChange(TypedDict):
    """What one job changed: its time, the step it went on from, and each key's old and new value."""

    time: int
    step: int
    changed: dict[str, list[Any]]


class RunRecord(TypedDict, total=False):
    """The record of a run. Records of earlier versions may lack any key; the average of two runs has `parents` instead.

    Attributes:
        recipe: The recipe's name, and the sections that the stage used.
        origin: The run or the folder of the initial model.
        origin_step: The step of the initial model's checkpoint.
        frozen: Identifies the frozen weights; checkpoints have it, `run.json` does not.
    """

    stage: str
    recipe: dict[str, Any]
    fingerprint: str
    origin: dict[str, str] | None
    origin_step: int | None
    resources: dict[str, Any]
    datasets: dict[str, DatasetRecord] | None
    packages: dict[str, str]
    git_revision: str
    created: int
    changes: list[RecordedChange]
    frozen: str
    parents: list[dict[str, Any]]


def describe(
    recipe: Recipe,
    stage: Literal["pretrain", "finetune"],
    resources: Resources,
    sources: Sequence[DatasetSource],
    origin: dict[str, str] | None = None,
    origin_step: int | None = None,
) -> RunRecord:
    """Return the record of a stage that is about to be trained."""
    sections = {
        "model": recipe.require("model").model_dump(mode="json"),
        stage: recipe.require(stage).model_dump(mode="json"),
    }
    return {
        "stage": stage,
        "recipe": {"name": recipe.name, **sections},
        "fingerprint": fingerprint(recipe),
        "origin": origin,
        "origin_step": origin_step,
        "resources": resources.model_dump(mode="json"),
        "datasets": {f"{s.manifest.name}@{s.manifest.version}": _dataset(s) for s in sources},
        "packages": package_versions(),
        "git_revision": git_revision(),
        "created": int(time.time()),
    }


def _dataset(source: DatasetSource) -> DatasetRecord:
    manifest = source.manifest
    return {
        "digest": manifest.digest,
        "rows": manifest.rows,
        "samples_per_epoch": source.samples_per_epoch,
        "decontamination": decontamination(root_of(source.folder), manifest),
    }
