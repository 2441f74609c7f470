"""What the gate judges a checkpoint by, read from storage: its evaluation and size, and the stable release's score."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from warren.cluster.batch.evaluation import evaluations_of
from warren.config import GateConfig
from warren.errors import NotFoundError, ReleaseError
from warren.evaluate.evaluation_report import Evaluation
from warren.evaluate.statistics import compare_shares
from warren.evaluate.stored_evaluations import PREDICTIONS
from warren.release import AnswerShares, CandidateFacts, Lineage, Registry, Release, StableComparison
from warren.storage import Location, StoredFiles
from warren.storage.parquet import read_parquet
from warren.train.run import Run


def facts_of(
    gate: GateConfig, registry: Registry, lineage: Lineage, model: StoredFiles, run: Run, evaluation: Evaluation
) -> CandidateFacts:
    """Return what the gate judges a checkpoint by.

    Args:
        gate: Says whether a comparison with the stable release is asked for.
        registry: Of the release that the checkpoint may become a version of.
        model: The checkpoint's model files.
        run: The checkpoint's run.
        evaluation: The one that the recipe describes.
    """
    compares = gate.no_regression or gate.max_regression is not None
    looks = gate.max_empty_fraction is not None or gate.max_same_answer_fraction is not None
    return CandidateFacts(
        metric=evaluation.metric,
        score=evaluation.value,
        score_low=evaluation.score.low,
        num_samples=evaluation.score.num_samples,
        model_bytes=sum(entry.bytes for entry in model.files),
        datasets=lineage.datasets,
        measured_on=(evaluation.dataset, evaluation.identity.dataset),
        stable=compare_with_stable(registry, run, evaluation) if compares else None,
        answers=_shares(run, evaluation) if looks else None,
    )


def compare_with_stable(registry: Registry, run: Run, evaluation: Evaluation) -> StableComparison | None:
    """Compare a checkpoint with the stable release on the questions that both answered; None where there is none."""
    version = registry.alias("stable")
    if version is None:
        return None
    try:
        stable = registry.read(version)
    except ReleaseError as error:
        return StableComparison(version, problem=f"{version} is stable, but cannot be read: {error}")
    if evaluation.identity.checkpoint in {each.checkpoint for each in stable.lineage.evaluations}:
        return StableComparison(version, evaluation.score.num_samples)  # it is the same model
    theirs = _same_evaluation(registry.root, stable, evaluation)
    if theirs is None:
        return StableComparison(
            version,
            problem=f"{version} is stable, but was not measured by {evaluation.identity.description}: measure run "
            f"{stable.lineage.run!r} at step {stable.lineage.step} so, or compare with another gate",
        )
    try:
        first = _answers(Run.of(registry.root, theirs.run), theirs)
        second = _answers(run, evaluation)
    except NotFoundError as error:
        return StableComparison(version, problem=f"{version} is stable, but answers are missing: {error}")
    # A sample may be quarantined in one of the two; a paired test needs the answers of both.
    both = sorted(first.keys() & second.keys())
    if not both:
        return StableComparison(version, problem=f"{version} is stable, and answered none of the same questions")
    compared = compare_shares([first[key] for key in both], [second[key] for key in both])
    return StableComparison(
        version, len(both), compared.difference, compared.interval.low, compared.interval.high, compared.p_value
    )


def _same_evaluation(root: Location, stable: Release, evaluation: Evaluation) -> Evaluation | None:
    """Return the evaluation of the stable release that asked the same questions in the same way."""
    lineage = stable.lineage
    if not lineage.run or lineage.step is None:
        return None
    # The run may have been trained again under the same step, so the weights decide.
    weights = {each.checkpoint for each in lineage.evaluations}
    identity = evaluation.identity
    for each in evaluations_of(Run.of(root, lineage.run)).of_step(lineage.step):
        same = (each.identity.dataset, each.identity.options) == (identity.dataset, identity.options)
        if same and each.identity.checkpoint in weights:
            return each
    return None


def _answers(run: Run, evaluation: Evaluation) -> Mapping[str, bool]:
    """Return whether each question was answered right, by the sample's key."""
    return dict(zip(*_columns(run, evaluation, "key", "correct"), strict=True))


def _shares(run: Run, evaluation: Evaluation) -> AnswerShares:
    """Return what the answers themselves show."""
    try:
        [answers] = _columns(run, evaluation, "answer")
    except NotFoundError as error:
        return AnswerShares(problem=f"answers are missing: {error}")
    counts = Counter(" ".join(answer.split()) for answer in answers)
    if not counts:
        return AnswerShares(problem="there are no answers to look at")
    [(commonest, number)] = counts.most_common(1)
    return AnswerShares(counts[""] / counts.total(), number / counts.total(), commonest)


def _columns(run: Run, evaluation: Evaluation, *names: str) -> list[list[Any]]:
    """Read columns of an evaluation's predictions.

    Raises:
        NotFoundError: They are gone.
    """
    file = evaluations_of(run).at(evaluation.step, evaluation.identity) / PREDICTIONS
    with file.open() as opened:
        rows = read_parquet(opened, str(file), list(names))
    return [rows[name].to_pylist() for name in names]
