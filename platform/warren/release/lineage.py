"""Lineage: what a release was made of. Typed here, flat JSON in `release.json`, readable from every earlier version."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

_DATASET_FIELDS = ("digest", "rows", "samples_per_epoch", "stage")
_PARENT_FIELDS = ("relation", "run", "step", "model", "fingerprint", "weight")


@dataclass(frozen=True)
class Decontamination:
    """What the certificates of a dataset and of its parents say (`warren.data.contamination_certificate`).

    Attributes:
        free_of: Digest of each evaluation set that the dataset shows no image of, by `name@version`.
        certificates: SHA-256 of each `contamination-DIGEST.json` that says so, by the dataset beside which it lies.
    """

    free_of: Mapping[str, str] = field(default_factory=dict)
    certificates: Mapping[str, str] = field(default_factory=dict)

    def covers(self, reference: str, digest: str) -> bool:
        """Tell whether the dataset is free of the images of an evaluation set."""
        return self.free_of.get(reference) == digest


@dataclass(frozen=True)
class TrainingDataset:
    """A dataset version that the model, or one that it started from, was trained on.

    Attributes:
        reference: `name@version`.
        digest: Of its content.
        rows: Number of its samples.
        samples_per_epoch: How many of them an epoch had.
        stage: The stage that trained on it.
        decontamination: None where it is not recorded.
    """

    reference: str
    digest: str = ""
    rows: int = 0
    samples_per_epoch: int = 0
    stage: str = ""
    decontamination: Decontamination | None = None


@dataclass(frozen=True)
class EvaluationReference:
    """An evaluation of the model: the inputs that identify it, as `warren.evaluate` stores them.

    Attributes:
        checkpoint: Digest of the model's files.
        dataset: Digest of the dataset's content.
        options: What was asked, and how; `dataset` and `metric` among others.
        code: Version of the measuring code.
    """

    checkpoint: str = ""
    dataset: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    code: str = ""


@dataclass(frozen=True)
class ParentModel:
    """A model that this one started from (`origin`), or is an average of (`average`).

    Attributes:
        run: The run that made it; empty for a model folder.
        step: Of that run's checkpoint.
        model: Location of a model folder, often of a release; empty for a run.
        fingerprint: Of the run's recipe.
        weight: In an average.
    """

    relation: str
    run: str = ""
    step: int | None = None
    model: str = ""
    fingerprint: str = ""
    weight: float | None = None

    @property
    def release(self) -> tuple[str, str] | None:
        """Name and version, if the model folder is a release: `…/releases/NAME/VERSION`."""
        parts = self.model.rstrip("/").split("/")
        return (parts[-2], parts[-1]) if len(parts) >= 3 and parts[-3] == "releases" else None

    @property
    def description(self) -> str:
        """The parent in a few words."""
        where = self.model or f"{self.run} at step {self.step}"
        return f"{self.relation} {where}" + (f", weight {self.weight:g}" if self.weight is not None else "")


@dataclass(frozen=True)
class Lineage:
    """Where a release came from.

    Attributes:
        run: The run whose checkpoint it is.
        step: Of that checkpoint.
        stage: `pretrain`, `finetune` or `average`.
        fingerprint: Of the recipe.
        datasets: What it was trained on, in this stage and in those before it, sorted by reference.
        evaluations: What it was measured by.
        parents: The models that it was made from.
        git_revision: Of the code that trained it.
        packages: Versions of the packages that trained it.
        record: The rest of the run's record: recipe, resources, changes and what later versions add.
    """

    run: str = ""
    step: int | None = None
    stage: str = ""
    fingerprint: str = ""
    datasets: tuple[TrainingDataset, ...] = ()
    evaluations: tuple[EvaluationReference, ...] = ()
    parents: tuple[ParentModel, ...] = ()
    git_revision: str = ""
    packages: Mapping[str, str] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the value as JSON types: the record's keys beside the typed ones; what is empty is left out."""
        plain = {name: getattr(self, name) for name in ("run", "step", "stage", "fingerprint", "git_revision")}
        plain |= {
            "datasets": {each.reference: _dataset_json(each) for each in self.datasets},
            "evaluations": [asdict(each) for each in self.evaluations],
            "parents": [_without_empty(asdict(each)) for each in self.parents],
            "packages": dict(self.packages),
        }
        return {**self.record, **_without_empty(plain)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Lineage":
        """Read what `to_json` returned, or the lineage of a release that an earlier version published."""
        rest = dict(value)
        if "checkpoint_step" in rest:
            rest.setdefault("step", rest.pop("checkpoint_step"))
        evaluations = rest.pop("evaluations", None)
        single = rest.pop("evaluation", None)
        typed = {
            name: rest.pop(name) for name in ("run", "step", "stage", "fingerprint", "git_revision") if name in rest
        }
        return cls(
            **{name: each for name, each in typed.items() if each is not None},
            datasets=datasets_of(rest.pop("datasets", None) or {}),
            evaluations=tuple(_evaluation(each) for each in evaluations or ([single] if single else [])),
            parents=_parents(rest.pop("parents", None) or (), rest),
            packages=rest.pop("packages", None) or {},
            record=rest,
        )


def datasets_of(records: Mapping[str, Any], stage: str = "") -> tuple[TrainingDataset, ...]:
    """Return the datasets of a run's record, or of a stored lineage.

    Args:
        stage: Of the run, where the records do not name it.
    """
    datasets = []
    for reference, record in sorted(records.items()):
        known = {name: record[name] for name in _DATASET_FIELDS if record.get(name) is not None}
        recorded = record.get("decontamination")
        parsed = Decontamination(**recorded) if recorded else None
        datasets.append(TrainingDataset(reference, **{"stage": stage, **known}, decontamination=parsed))
    return tuple(datasets)


def _dataset_json(dataset: TrainingDataset) -> dict[str, Any]:
    value = _without_empty({name: getattr(dataset, name) for name in _DATASET_FIELDS})
    return value | ({"decontamination": asdict(dataset.decontamination)} if dataset.decontamination else {})


def _evaluation(value: Mapping[str, Any]) -> EvaluationReference:
    return EvaluationReference(**{name: value[name] for name in ("checkpoint", "dataset", "options", "code")})


def _parents(stored: Sequence[Mapping[str, Any]], record: Mapping[str, Any]) -> tuple[ParentModel, ...]:
    """Return the parents; those of earlier versions are whole records of averaged runs, and an `origin`."""
    parents = [
        ParentModel(**{"relation": "average", **{key: each[key] for key in _PARENT_FIELDS if key in each}})
        for each in stored
    ]
    if not parents and (origin := record.get("origin")):
        parents = [ParentModel("origin", origin.get("run", ""), record.get("origin_step"), origin.get("model", ""))]
    return tuple(parents)


def _without_empty(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: each for key, each in value.items() if each not in (None, "", {}, [], ())}
