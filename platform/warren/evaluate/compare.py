"""Two runs on the same questions: which numbers differ, by how much, and whether that is more than chance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from warren.errors import DataError
from warren.evaluate.score_answers import measures_of
from warren.evaluate.score_formatting import markdown_cell, number
from warren.evaluate.statistics import Comparison, holm

_SIGNIFICANT = 0.05


@dataclass(frozen=True)
class ComparisonRow:
    """One number of both runs.

    Attributes:
        name: Where it stands in the scores.
        first: The first run's number.
        second: The second run's number.
        comparison: Difference, interval and p value; None where one image is too few to tell.
        corrected: The p value after Holm's correction for the number of rows.
    """

    name: str
    first: float
    second: float
    comparison: Comparison | None
    corrected: float | None

    @property
    def conclusion(self) -> str:
        """`better`, `worse` or `no difference shown`, after correction."""
        if self.comparison is None or self.corrected is None or self.corrected >= _SIGNIFICANT:
            return "no difference shown"
        return "better" if self.comparison.difference > 0 else "worse"


def compare_reports(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[ComparisonRow]:
    """Compare two reports of `score_answers`, number by number, in the order of the first.

    Raises:
        DataError: They are of different benchmarks, conventions or questions.
    """
    for field in ("benchmark", "convention", "split"):
        if first.get(field) != second.get(field):
            raise DataError(
                f"the runs differ in {field}: {first.get(field)!r} and {second.get(field)!r}; only scores of one "
                "benchmark, split and convention can be compared"
            )
    measures, others = measures_of(first), {measure.name: measure for measure in measures_of(second)}
    if not measures:
        raise DataError(
            f"{first.get('benchmark')} ({first.get('convention')}) has no numbers to compare: its server scores it, or "
            "a judge does (score with --judge, then compare the two scores.json)"
        )
    if {measure.name for measure in measures} != set(others):
        names = ", ".join(sorted({measure.name for measure in measures} ^ set(others))[:3])
        raise DataError(f"only one run has {names}: the runs rest on different questions")
    pairs = [(measure, others[measure.name]) for measure in measures]
    comparisons = [measure.compare(other) for measure, other in pairs]
    # Holm's method counts only rows that have a test, so rows without one are skipped in both loops.
    corrected = iter(holm([comparison.p_value for comparison in comparisons if comparison is not None]))
    return [
        ComparisonRow(measure.name, measure.value, other.value, comparison, next(corrected) if comparison else None)
        for (measure, other), comparison in zip(pairs, comparisons, strict=True)
    ]


def render_comparison(
    rows: Sequence[ComparisonRow], first: Mapping[str, Any], second: Mapping[str, Any], names: tuple[str, str]
) -> str:
    """Write a comparison as Markdown.

    Args:
        rows: What `compare_reports` returned.
        first: The first run's report.
        second: The second run's report.
        names: What the runs are called in the table.
    """
    left, right = map(markdown_cell, names)
    count = max((len(measure["keys"]) for measure in first["measures"]), default=0)
    lines = [
        f"# {first['title']} ({first['convention']}): {names[1]} against {names[0]}",
        "",
        f"{count} questions, answered by both. A difference is the second run's number minus the first's.",
        *_differing_prompts(first, second),
        *_differing_judges(first, second),
        "",
        f"| score | {left} | {right} | difference | 95 % interval | p | corrected | smallest | |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
        *map(_line, rows),
        "",
        "p: McNemar's mid-p test for shares of right answers, a bootstrap over images for the rest. Corrected: p by "
        "Holm's method for the number of rows. Smallest: the difference that four of five repetitions would show. "
        "The last column judges by the corrected p at 5 %.",
    ]
    return "\n".join(lines) + "\n"


def _line(row: ComparisonRow) -> str:
    values = f"| {markdown_cell(row.name)} | {number(row.first)} | {number(row.second)} "
    comparison = row.comparison
    if comparison is None or row.corrected is None:
        return f"{values}| {_signed(row.second - row.first)} | | | | | one image: no interval |"
    interval = f"{_signed(comparison.interval.low)} to {_signed(comparison.interval.high)}"
    tested = f"{_p(comparison.p_value)} | {_p(row.corrected)} | {number(comparison.smallest_detectable)}"
    return f"{values}| {_signed(comparison.difference)} | {interval} | {tested} | {row.conclusion} |"


def _differing_prompts(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    if first.get("prompts") == second.get("prompts"):
        return []
    return [
        "",
        f"The prompts differ: {first.get('prompts')} and {second.get('prompts')}. The difference may be theirs.",
    ]


def _differing_judges(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    judges = [(report.get("judge") or {}) for report in (first, second)]
    models = [judge.get("model") for judge in judges]
    if models[0] != models[1]:
        return ["", f"The judges differ: {models[0]} and {models[1]}. The difference may be theirs."]
    if judges[0].get("prompts_digest") != judges[1].get("prompts_digest"):
        return ["", "The judge's prompts differ. The difference may be theirs."]
    return []


def _signed(value: float) -> str:
    return f"+{number(value)}" if value > 0 else number(value)


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
