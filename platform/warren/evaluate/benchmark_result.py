"""The result of a benchmark run: one file of answers, scores by each convention that they allow, and a report page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from warren.errors import QuarantineError, WarrenError
from warren.evaluate.answer_pieces import Outcome, PieceEffort
from warren.evaluate.benchmark_questions import prompt_convention
from warren.evaluate.benchmark_run import ANSWERS, BenchmarkRun
from warren.evaluate.report_page import Page, write_page
from warren.evaluate.score_answers import score_answers
from warren.storage import Location

SCORES = "scores.json"
_SHOWN = 5


@dataclass(frozen=True)
class BenchmarkResult:
    """What a finished run has in storage.

    Attributes:
        report: What `score_answers` returned for the run's own convention.
        others: The same for each other convention whose prompts are those that were sent.
        unscored: Why there are no scores of a convention, by its name.
        page: The report for people.
    """

    report: Mapping[str, Any]
    others: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    unscored: Mapping[str, str] = field(default_factory=dict)
    page: Location | None = None


def finish(
    run: BenchmarkRun,
    reference: Location | None = None,
    convention: str | None = None,
    max_failed_fraction: float = 0.0,
) -> BenchmarkResult:
    """Join the answers of a run whose questions are all asked, score them and write the report.

    Args:
        run: Every question has an outcome.
        reference: The truths; by default where the benchmark says, or the folder of the questions.
        convention: Whose rules decide `scores.json`; the benchmark's first by default.
        max_failed_fraction: Largest share of questions that may have failed.

    Raises:
        QuarantineError: More failed. Answers and failures are stored; there are no scores.
        DataError: The reference cannot be read, or does not fit.
    """
    outcomes, stored = run.join()
    answers = run.folder / ANSWERS
    # After the answers are stored, so that an error loses nothing.
    _check_failures(outcomes, max_failed_fraction, answers)
    benchmark = run.source.benchmark
    where = reference or benchmark.default_reference or run.source.data
    chosen = convention or next(iter(benchmark.conventions))
    report = score_answers(run.source.name, answers, where, chosen, max_failed_fraction)
    (run.folder / SCORES).put_json(report)
    others, unscored = _other_scores(run, where, chosen, max_failed_fraction)
    page = Page.of(report, answers, run.source.data)
    facts = {**page.facts, **_throughput(outcomes, stored.efforts)}
    return BenchmarkResult(report, others, unscored, write_page(replace(page, facts=facts), run.folder))


def _other_scores(
    run: BenchmarkRun, reference: Location, chosen: str, max_failed_fraction: float
) -> tuple[dict[str, Mapping[str, Any]], dict[str, str]]:
    """Score by the other conventions; where one cannot, say why."""
    scored: dict[str, Mapping[str, Any]] = {}
    unscored: dict[str, str] = {}
    for name in run.source.benchmark.conventions:
        if name == chosen:
            continue
        if prompt_convention(run.source.name, name) != run.source.convention:
            unscored[name] = f"it has other prompts: ask again with --convention {name}"
            continue
        try:
            scored[name] = score_answers(run.source.name, run.folder / ANSWERS, reference, name, max_failed_fraction)
        except WarrenError as error:
            # Another convention may need columns or answers that this one does not; that is no reason to end.
            unscored[name] = " ".join(str(error).split())
            continue
        (run.folder / f"scores-{name}.json").put_json(scored[name])
    return scored, unscored


def _check_failures(outcomes: Sequence[Outcome], allowed: float, answers: Location) -> None:
    failures = [each for each in outcomes if each.answer.error is not None]
    if len(failures) > allowed * len(outcomes):
        shown = "; ".join(f"{each.answer.key!r}: {each.answer.error}" for each in failures[:_SHOWN])
        transient = sum(each.is_transient for each in failures)
        again = f"run this again to ask the {transient} whose reason may pass, " if transient else ""
        raise QuarantineError(
            f"{len(failures)} of {len(outcomes)} questions failed, more than the allowed {allowed:.2%} ({shown}). "
            f"Answers and failures are in {answers}; a failure is never a score: {again}mend the questions, or raise "
            "--max-failed-fraction to score without them"
        )


def _throughput(outcomes: Sequence[Outcome], efforts: Sequence[PieceEffort]) -> dict[str, str]:
    num_asked, seconds = sum(each.num_asked for each in efforts), sum(each.seconds for each in efforts)
    times = [each.answer.seconds for each in outcomes if each.answer.seconds is not None]
    facts = {}
    if seconds and num_asked:
        facts["throughput"] = f"{num_asked / seconds:.2f} answers a second and evaluator"
        facts["evaluator time"] = f"{seconds:.0f} s, {seconds / 3600:.3f} evaluator-hours"
    if times:
        facts["time for an answer"] = f"{sum(times) / len(times):.2f} s on average, waiting included"
    attempts = len({each.attempt for each in efforts})
    if attempts > 1:
        facts["asked in"] = f"{attempts} starts of the job"
    return facts
