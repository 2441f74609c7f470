"""What a benchmark is: where its reference lies, and how stored answers become scores."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from warren.storage import Location


@dataclass(frozen=True)
class Answer:
    """One line of an answers file, made by Warren or elsewhere.

    Attributes:
        key: The question's id, as text.
        text: What the model answered, as it came.
        prompt: The question as it was sent; empty where the file does not say.
        row: The whole line, for benchmarks that need more of it.
    """

    key: str
    text: str
    prompt: str
    row: Mapping[str, Any]


@dataclass(frozen=True)
class Scores:
    """What one convention makes of the answers.

    Attributes:
        num_questions: In the reference.
        num_answered: Of those, how many the answers file holds.
        scores: Named numbers and groups, as the convention's own script reports them. None where only the benchmark's
            server can score: then there is a submission.
        per_question: What was decided for each question.
        random_fallback: Keys of questions whose answer the convention draws at random because it could not read it.
        scores_without_luck: The same scores with every answer that was drawn at random counted as wrong.
        submission: The content that the benchmark's server takes.
    """

    num_questions: int
    num_answered: int
    scores: Mapping[str, Any] | None
    per_question: Mapping[str, Any] = field(default_factory=dict)
    random_fallback: Sequence[str] = ()
    scores_without_luck: Mapping[str, Any] | None = None
    submission: Any = None


Scorer = Callable[[Sequence[Answer], Location], Scores]
"""Scores answers against a reference: a file, or a folder in the benchmark's published layout."""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark. A module of this package that names one `BENCHMARK` adds it; nothing else is touched.

    Attributes:
        name: What `--benchmark` takes.
        title: For people.
        reference: What `--reference` has to hold.
        obtained_from: Where people get the reference.
        conventions: Scorers by convention; `bunny` gives what Bunny's own scripts give.
    """

    name: str
    title: str
    reference: str
    obtained_from: str
    conventions: Mapping[str, Scorer]
