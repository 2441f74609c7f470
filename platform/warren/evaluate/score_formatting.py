"""Scores for people: nested scores as lines of a table, and numbers as text."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_NO_NUMBERS = {"results"}  # tables of single questions


@dataclass(frozen=True)
class Line:
    """One number of a score table.

    Attributes:
        name: Where it stands in the scores, such as `Perception/tasks/OCR`.
        value: As the convention reports it.
        low: Lower end of its 95 % interval; None where there is no interval.
        high: Upper end of it.
        num_questions: The questions that it rests on; None where that is unknown.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    num_questions: int | None = None

    @property
    def interval(self) -> str:
        """The interval as text, empty where there is none."""
        return "" if self.low is None or self.high is None else f"{number(self.low)} to {number(self.high)}"


def table(report: Mapping[str, Any]) -> list[Line]:
    """Return every number of a report of `score_answers`, with its interval where single questions determine it."""
    measures = {measure["name"]: measure for measure in report["measures"]}
    lines = []
    for name, value in numbers(report["scores"] or {}):
        measure = measures.get(name)
        interval = (measure or {}).get("interval") or {}
        count = len(measure["keys"]) if measure else None
        lines.append(Line(name, value, interval.get("low"), interval.get("high"), count))
    return lines


def numbers(scores: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of nested scores, with the path to each."""
    for name, value in scores.items():
        path = f"{prefix}{name}"
        if name in _NO_NUMBERS or isinstance(value, bool):
            continue
        if isinstance(value, Mapping):
            yield from numbers(value, f"{path}/")
        elif isinstance(value, int | float):
            yield path, value
        elif isinstance(value, list) and value and isinstance(value[0], int | float):
            yield path, value[0]


def markdown_cell(text: str) -> str:
    """Return a text as one line that stays inside its cell of a Markdown table."""
    return " ".join(text.replace("|", "\\|").split())


def number(value: float) -> str:
    """Return a number with as many digits as a table needs."""
    if isinstance(value, int) or value == int(value):
        return str(int(value))
    return f"{value:.4f}" if abs(value) <= 1 else f"{value:.2f}"


def score_lines(report: Mapping[str, Any]) -> list[str]:
    """Return the table as lines of text."""
    lines = []
    for line in table(report):
        interval = f"  (95 % interval {line.interval})" if line.interval else ""
        lines.append(f"{line.name}: {number(line.value)}{interval}")
    return lines
