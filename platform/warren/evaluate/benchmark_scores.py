"""Scoring answers that exist already: a file of answers, a reference and a convention make one JSON report."""

from typing import Any

from warren.errors import ConfigError
from warren.evaluate.benchmarks import Benchmark, all_benchmarks, benchmark_named
from warren.evaluate.benchmarks.reading import read_answers
from warren.storage import Location

_FORMAT = 1


def score_answers(benchmark: str, answers: Location, reference: Location, convention: str) -> dict[str, Any]:
    """Score stored answers.

    Returns:
        Numbers and groups under `scores`, None where only the benchmark's server can score; then `submission` is what
        that server takes. `answered_fraction` and `random_fallback_fraction` say how much of the scores rests on
        answers that are missing or could not be read.

    Raises:
        ConfigError: There is no such benchmark or convention.
        DataError: Answers or reference cannot be read, or do not belong together.
    """
    chosen = benchmark_named(benchmark)
    if convention not in chosen.conventions:
        raise ConfigError(f"{benchmark} has no convention {convention!r}; valid: {', '.join(chosen.conventions)}")
    rows, num_broken = read_answers(answers)
    found = chosen.conventions[convention](rows, reference)
    return {
        "format": _FORMAT,
        "benchmark": chosen.name,
        "convention": convention,
        "num_questions": found.num_questions,
        "num_answered": found.num_answered,
        "answered_fraction": found.num_answered / found.num_questions,
        "num_broken_lines": num_broken,
        "random_fallback_ids": list(found.random_fallback),
        "random_fallback_fraction": len(found.random_fallback) / found.num_questions,
        "scores": found.scores,
        "scores_with_random_fallback_counted_wrong": found.scores_without_luck,
        "per_question": found.per_question,
        "submission": found.submission,
    }


def describe_benchmarks() -> str:
    """Return a table of the benchmarks: what each needs, and where people get it."""
    return "\n\n".join(_describe(benchmark) for benchmark in all_benchmarks().values())


def _describe(benchmark: Benchmark) -> str:
    return (
        f"{benchmark.name}: {benchmark.title}\n"
        f"  --reference  {benchmark.reference}\n"
        f"  get it from  {benchmark.obtained_from}\n"
        f"  conventions  {', '.join(benchmark.conventions)}"
    )
