"""Scoring answers that exist already: a file of answers, a reference and a convention make one JSON report."""

from collections.abc import Mapping, Sequence
from typing import Any

from warren.errors import ConfigError, DataError, QuarantineError
from warren.evaluate.answers import AnswersOrigin, load_answers
from warren.evaluate.benchmarks import Benchmark, all_benchmarks, benchmark_named
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
) -> dict[str, Any]:
    """Score stored answers.

    Args:
        benchmark: Its name, or the path of a YAML file that defines one.
        answers: Warren's Parquet file, or JSON lines made elsewhere.
        reference: The published file or folder that holds the truths; None for a benchmark that says where it is.
        convention: Whose rules; None for the benchmark's default.
        max_failed_fraction: Largest share of questions whose request may have failed. They are left out of the scores
            and listed.

    Returns:
        Numbers and groups under `scores`, None where only the benchmark's server can score; then `submission` is what
        that server takes. `answered_fraction` and `random_fallback_fraction` say how much of the scores rests on
        answers that are missing or could not be read. `measures` has an interval for every number that single
        questions determine.

    Raises:
        ConfigError: There is no such benchmark or convention.
        DataError: Answers or reference cannot be read, or do not belong together.
        QuarantineError: More requests failed than allowed.
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
    found = chosen.conventions[convention](rows, where)
    num_asked = found.num_questions or 1
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
        "num_questions": found.num_questions,
        "num_answered": found.num_answered,
        "answered_fraction": found.num_answered / num_asked,
        "num_failed": len(rows.failed),
        "failed": sorted(rows.failed),
        "num_broken_lines": num_broken,
        "random_fallback_ids": list(found.random_fallback),
        "random_fallback_fraction": len(found.random_fallback) / num_asked,
        "scores": found.scores,
        "scores_with_random_fallback_counted_wrong": found.scores_without_luck,
        "per_question": found.per_question,
        "submission": found.submission,
        "measures": [measure.to_json() for measure in found.measures],
    }


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


def _check_failed(failed: Sequence[str] | frozenset[str], total: int, allowed: float, answers: Location) -> None:
    if len(failed) > allowed * total:
        shown = ", ".join(repr(key) for key in sorted(failed)[:_SHOWN])
        raise QuarantineError(
            f"{answers}: {len(failed)} of {total} questions failed ({shown}), more than the allowed {allowed:.2%}; a "
            "failure is never a score: ask these again, or raise --max-failed-fraction to score without them"
        )
