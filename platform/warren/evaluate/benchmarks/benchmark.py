"""What a benchmark is: where its reference lies, and how stored answers become scores."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from warren.evaluate.benchmarks.question import Question
from warren.evaluate.measures import Measure
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


class Answers(list[Answer]):
    """The answers of a file.

    Attributes:
        failed: Keys of the questions whose request failed. They have no answer, and no score may count them.
    """

    failed: frozenset[str] = frozenset()


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
        measures: The numbers of `scores` as functions of single questions, from which intervals are computed.
    """

    num_questions: int
    num_answered: int
    scores: Mapping[str, Any] | None
    per_question: Mapping[str, Any] = field(default_factory=dict)
    random_fallback: Sequence[str] = ()
    scores_without_luck: Mapping[str, Any] | None = None
    submission: Any = None
    measures: Sequence[Measure] = ()


Scorer = Callable[[Answers, Location], Scores]
"""Scores answers against a reference: a file, or a folder in the benchmark's published layout."""


@dataclass(frozen=True)
class JudgeRequest:
    """What a judge model is asked about one answer.

    Attributes:
        key: The question's id.
        prompt: The user's message.
        max_tokens: Longest judgement.
    """

    key: str
    prompt: str
    max_tokens: int

    def body(self, model: str) -> dict[str, Any]:
        """Return the body of the chat request, always greedy."""
        messages = [{"role": "user", "content": self.prompt}]
        return {"model": model, "messages": messages, "max_tokens": self.max_tokens, "temperature": 0}

    def batch_line(self, model: str) -> dict[str, Any]:
        """Return the request as a line of a file for OpenAI's Batch API."""
        return {"custom_id": self.key, "method": "POST", "url": "/v1/chat/completions", "body": self.body(model)}


@dataclass(frozen=True)
class JudgedConvention:
    """A convention whose scores rest on a judge model. Called as a `Scorer` it has no judge, and so no scores.

    Attributes:
        prompts: The judge's prompts by name, as templates; scores record them.
        requests: What the judge is asked about every answer; answers that failed are left out.
        read: What a judgement says, None for one that says nothing.
        score: Scores from answers and what their judgements say. Questions without a judgement are in `failed`.
    """

    prompts: Callable[[Location], Mapping[str, str]]
    requests: Callable[[Answers, Location], Sequence[JudgeRequest]]
    read: Callable[[str], Any]
    score: Callable[[Answers, Location, Mapping[str, Any]], Scores]

    def __call__(self, answers: Answers, reference: Location) -> Scores:
        """Return no scores, and the file for the judge."""
        requests = self.requests(answers, reference)
        num_questions = len(requests) + len(answers.failed)
        lines = [request.batch_line("") for request in requests]
        return Scores(num_questions, len(requests), None, submission=lines)


QuestionReader = Callable[[Location, str], Iterator[Question]]
"""Reads the questions of a split from the folder that holds the benchmark's published files."""


@dataclass(frozen=True)
class Benchmark:
    """One benchmark. A module of this package that names one `BENCHMARK` adds it; nothing else is touched.

    Attributes:
        name: What `--benchmark` takes.
        title: For people.
        reference: What `--reference` has to hold.
        obtained_from: Where people get the reference.
        conventions: Scorers by convention; `bunny` gives what Bunny's own scripts give. A `JudgedConvention` needs a
            judge model.
        questions: Readers of questions by convention, which decides the prompt. A convention that scores and is not
            here has the prompts of the first one.
        data: What the folder has to hold to ask the questions.
        splits: The splits that can be asked, the default first.
        max_new_tokens: Longest answer.
        submission_format: The ending of the file that the benchmark's server takes: .json, .jsonl or .xlsx.
        default_reference: Where the reference is, for a benchmark that a file defines.
    """

    name: str
    title: str
    reference: str
    obtained_from: str
    conventions: Mapping[str, Scorer | JudgedConvention]
    questions: Mapping[str, QuestionReader] = field(default_factory=dict)
    data: str = ""
    splits: tuple[str, ...] = ("test",)
    max_new_tokens: int = 128
    submission_format: str = ".json"
    default_reference: Location | None = None
