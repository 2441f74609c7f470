"""The scores of a run's checkpoints in storage, whoever evaluated them.

scores/00000120/WEIGHTS/NAME.json           what one evaluation measured on these weights; written once
scores/00000120/WEIGHTS/NAME.failed.json    why its newest attempt failed; gone once it has succeeded
scores/00000120/WEIGHTS/release.json        what became of the checkpoint as a release; written once
"""

import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from warren.config import BenchmarkConfig, EvaluateConfig, fingerprint
from warren.errors import ConflictError, NotFoundError
from warren.storage import Location
from warren.train.checkpoint import MODEL_FOLDER, CheckpointManifest, Checkpoints

_FOLDER = "scores"
_RELEASE = "release.json"
_FAILED = ".failed.json"
_PARALLEL_READS = 8
_WEIGHTS_CHARS = 12
_NO_INPUT = {"max_quarantined_fraction": 1.0, "max_failed_fraction": 1.0}  # decides what is accepted, not the scores


@dataclass(frozen=True)
class EvaluationScores:
    """What one evaluation of a checkpoint measured.

    Attributes:
        evaluation: `evaluation_name` of what it was evaluated by.
        scores: Numbers by name, such as `easy-vqa-test@v1/exact_match`.
        report: Where its report is.
        when: Seconds since 1970.
    """

    evaluation: str
    scores: dict[str, float]
    report: str
    when: int = field(default_factory=lambda: int(time.time()))


@dataclass(frozen=True)
class EvaluationFailure:
    """Why an evaluation of a checkpoint failed, and the command that runs it again."""

    evaluation: str
    reason: str
    command: str


@dataclass(frozen=True)
class ReleaseOutcome:
    """What became of a checkpoint as a release.

    Attributes:
        version: The release; None where the gate refused the checkpoint.
        reason: What the gate said.
    """

    version: str | None
    reason: str


@dataclass(frozen=True)
class EvaluatedCheckpoint:
    """What is known of the weights of one checkpoint.

    Attributes:
        weights: The start of the digest of the model's files.
    """

    step: int
    weights: str
    evaluations: Mapping[str, EvaluationScores] = field(default_factory=dict)
    failures: Mapping[str, EvaluationFailure] = field(default_factory=dict)
    outcome: ReleaseOutcome | None = None

    @property
    def scores(self) -> dict[str, float]:
        """The scores of all evaluations."""
        return {name: value for each in self.evaluations.values() for name, value in each.scores.items()}


def evaluation_name(config: EvaluateConfig | BenchmarkConfig) -> str:
    """Return a file name that differs where what is asked differs, such as `mme-0d1f5c7a`."""
    label = f"{config.dataset}-{config.metric}" if isinstance(config, EvaluateConfig) else config.name.split("/")[-1]
    same = {name: value for name, value in _NO_INPUT.items() if name in type(config).model_fields}
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '-', label)}-{fingerprint(config.model_copy(update=same))[:8]}"


def weights_of(checkpoints: Checkpoints, checkpoint: CheckpointManifest) -> str:
    """Identify the weights of a checkpoint; a step that was trained again has others."""
    return checkpoints.part(checkpoint, MODEL_FOLDER).digest[:_WEIGHTS_CHARS]


@dataclass(frozen=True)
class CheckpointScores:
    """The scores of one run's checkpoints; `run` is the run's folder."""

    run: Location

    def read(self) -> list[EvaluatedCheckpoint]:
        """Return everything that is stored, in the order of the steps."""
        files = (self.run / _FOLDER).list()
        with ThreadPoolExecutor(_PARALLEL_READS) as pool:
            values = list(pool.map(_read, files))
        by_weights: dict[tuple[int, str], dict[str, Any]] = {}
        for file, value in zip(files, values, strict=True):
            if value is not None:
                step, weights = file.uri.split("/")[-3:-1]
                by_weights.setdefault((int(step), weights), {})[file.name] = value
        return [_evaluated(*key, values_of) for key, values_of in sorted(by_weights.items())]

    def write(self, step: int, weights: str, scores: EvaluationScores) -> None:
        """Write what an evaluation measured. If somebody was faster, theirs stays."""
        folder = self._at(step, weights)
        with suppress(ConflictError):
            (folder / f"{scores.evaluation}.json").create_json(asdict(scores))
        failure = folder / f"{scores.evaluation}{_FAILED}"
        failure.store.delete(failure.key)

    def write_failure(self, step: int, weights: str, failure: EvaluationFailure) -> None:
        """Write why an evaluation failed; the newest reason stays."""
        (self._at(step, weights) / f"{failure.evaluation}{_FAILED}").put_json(asdict(failure))

    def write_outcome(self, step: int, weights: str, outcome: ReleaseOutcome) -> None:
        """Write what became of a checkpoint as a release. If somebody was faster, theirs stays."""
        with suppress(ConflictError):
            (self._at(step, weights) / _RELEASE).create_json(asdict(outcome))

    def _at(self, step: int, weights: str) -> Location:
        return self.run / _FOLDER / f"{step:08d}" / weights


def _read(file: Location) -> Any:
    try:
        return file.read_json()
    except NotFoundError:  # a failure that has passed since the files were listed
        return None


def _evaluated(step: int, weights: str, files: Mapping[str, Any]) -> EvaluatedCheckpoint:
    failures = {name: value for name, value in files.items() if name.endswith(_FAILED)}
    measured = [value for name, value in files.items() if name not in failures and name != _RELEASE]
    evaluations = {value["evaluation"]: EvaluationScores(**value) for value in measured}
    return EvaluatedCheckpoint(
        step,
        weights,
        evaluations,
        {value["evaluation"]: EvaluationFailure(**value) for value in failures.values()},
        ReleaseOutcome(**files[_RELEASE]) if _RELEASE in files else None,
    )


def newest_scores(checkpoints: Sequence[EvaluatedCheckpoint]) -> dict[int, EvaluatedCheckpoint]:
    """Return the scores by step; of a step that was trained again, those of the weights measured last."""

    def when(checkpoint: EvaluatedCheckpoint) -> int:
        return max((each.when for each in checkpoint.evaluations.values()), default=0)

    return {each.step: each for each in sorted(checkpoints, key=lambda each: (each.step, when(each)))}
