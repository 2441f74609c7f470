"""Scoring answers that exist already: a file of answers, a reference and a convention make one JSON report."""

from collections.abc import Mapping, Sequence
from typing import Any

from warren.errors import ConfigError, DataError, QuarantineError
from warren.evaluate.answer_file import AnswersOrigin, load_answers
from warren.evaluate.benchmarks import (
    Answers,
    Benchmark,
    JudgedConvention,
    Scorer,
    Scores,
    all_benchmarks,
    benchmark_named,
)
from warren.evaluate.llm_judge import AnswerJudge, score_with_judge
from warren.evaluate.measures import Measure
from warren.storage import Location

_FORMAT = 2
_SHOWN = 5


def score_answers(
    benchmark: str,
    answers: Location,
    reference: Location | None = None,
    convention: str | None = None,
    max_failed_fraction: float = 0.0,
    judge: AnswerJudge | None = None,
) -> dict[str, Any]:
    """Score stored answers.

    Args:
        benchmark: Its name, or the path of a YAML file that defines one.
        answers: Warren's Parquet file, or JSON lines made elsewhere.
        reference: The published file or folder that holds the truths; None for a benchmark that says where it is.
        convention: Whose rules; None for the benchmark's default.
        max_failed_fraction: Largest share of questions whose request may have failed. They are left out of the scores
            and listed.
        judge: The judge model, for a convention that needs one. Without it such scores are None.

    Returns:
        Numbers and groups under `scores`, None where only the benchmark's server or a judge can score; then
        `submission` is what these take. `answered_fraction` and `random_fallback_fraction` say how much of the scores
        rests on answers that are missing or could not be read. `measures` has an interval for every number that
        single questions determine.

    Raises:
        ConfigError: There is no such benchmark or convention.
        DataError: Answers or reference cannot be read, or do not belong together.
        QuarantineError: More requests failed than allowed, or more answers have no judgement.
        ServiceError: The judge refuses every request.
    """
    chosen = benchmark_named(benchmark)
    convention = convention or next(iter(chosen.conventions))
    if convention not in chosen.conventions:
        raise ConfigError(
            f"{benchmark} has no convention {convention!r}; valid: {', '.join(chosen.conventions)}. A convention is "
            "offered where its scores were compared with those of the package that it is named after"
        )
    where = reference or chosen.default_reference
    if where is None:
        raise ConfigError(f"{benchmark} needs a reference: {chosen.reference}")
    rows, num_broken, origin = load_answers(answers)
    _check_origin(origin, chosen, answers)
    _check_failed(rows.failed, len(rows) + len(rows.failed), max_failed_fraction, answers)
    scores, judged = _scored(chosen.conventions[convention], rows, where, judge)
    unjudged: dict[str, str] = judged["failed"] if judged else {}
    failed = sorted({*rows.failed, *unjudged})
    if unjudged:
        _check_judged(unjudged, len(failed), scores.num_questions, max_failed_fraction)
    # Where every question failed there is nothing to divide by.
    num_asked = scores.num_questions or 1
    return {
        "format": _FORMAT,
        "benchmark": chosen.name,
        "title": chosen.title,
        "defined_in": chosen.obtained_from if chosen.default_reference else None,
        "convention": convention,
        "prompts": origin.prompts or None,
        "model": origin.model or None,
        "split": origin.split or None,
        "digests": dict(origin.digests or {}),
        "versions": dict(origin.versions or {}),
        "num_questions": scores.num_questions,
        "num_answered": scores.num_answered,
        "answered_fraction": scores.num_answered / num_asked,
        "num_failed": len(failed),
        "failed": failed,
        "num_broken_lines": num_broken,
        "random_fallback_ids": list(scores.random_fallback),
        "random_fallback_fraction": len(scores.random_fallback) / num_asked,
        "needs_judge": isinstance(chosen.conventions[convention], JudgedConvention),
        "judge": judged,
        "scores": scores.scores,
        "scores_with_random_fallback_counted_wrong": scores.scores_without_luck,
        "per_question": scores.per_question,
        "submission": scores.submission,
        "submission_format": chosen.submission_format,
        "measures": [measure.to_json() for measure in scores.measures],
    }


def _scored(
    convention: Scorer | JudgedConvention, answers: Answers, reference: Location, judge: AnswerJudge | None
) -> tuple[Scores, dict[str, Any] | None]:
    """Return the scores, and what a report says of the judge that they rest on."""
    if judge is None:
        return convention(answers, reference), None
    if not isinstance(convention, JudgedConvention):
        raise ConfigError("this convention needs no judge: leave --judge out, or choose a --convention that has one")
    return score_with_judge(convention, answers, reference, judge)


def measures_of(report: Mapping[str, Any], where: object = "scores.json") -> list[Measure]:
    """Return the measures of a report of `score_answers`.

    Raises:
        DataError: It is something else.
    """
    if not isinstance(report, Mapping) or not isinstance(report.get("measures"), list):
        raise DataError(f"{where}: not a scores.json of this version of Warren: it has no measures; score again")
    return [Measure.from_json(value) for value in report["measures"]]


def describe_benchmarks() -> str:
    """Return a table of the benchmarks: what each needs, and where people get it."""
    return "\n\n".join(_describe(benchmark) for benchmark in all_benchmarks().values())


def _describe(benchmark: Benchmark) -> str:
    lines = [
        f"{benchmark.name}: {benchmark.title}",
        f"  --reference  {benchmark.reference}",
        f"  to ask it    {benchmark.data or 'score answers made elsewhere'}",
        f"  splits       {', '.join(benchmark.splits)}",
        f"  get it from  {benchmark.obtained_from}",
        f"  conventions  {', '.join(benchmark.conventions)}",
    ]
    return "\n".join(lines)


def _check_origin(origin: AnswersOrigin, benchmark: Benchmark, answers: Location) -> None:
    if origin.benchmark and origin.benchmark != benchmark.name:
        raise DataError(f"{answers}: these are answers of {origin.benchmark}, not of {benchmark.name}")


def _check_judged(reasons: Mapping[str, str], num_failed: int, total: int, allowed: float) -> None:
    if num_failed > allowed * total:
        shown = "; ".join(f"{key!r}: {reason}" for key, reason in list(reasons.items())[:_SHOWN])
        raise QuarantineError(
            f"{len(reasons)} of {total} answers have no judgement ({shown}), more than the allowed {allowed:.2%}; a "
            "failure is never a score: score again, which asks only for these, or raise --max-failed-fraction"
        )


def _check_failed(failed: Sequence[str] | frozenset[str], total: int, allowed: float, answers: Location) -> None:
    if len(failed) > allowed * total:
        shown = ", ".join(repr(key) for key in sorted(failed)[:_SHOWN])
        raise QuarantineError(
            f"{answers}: {len(failed)} of {total} questions failed ({shown}), more than the allowed {allowed:.2%}; a "
            "failure is never a score: ask these again, or raise --max-failed-fraction to score without them"
        )
