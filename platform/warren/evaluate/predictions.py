"""Predictions of a model for stored samples: its answer to each first question, and whether it is right."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from warren.config import EvaluateConfig
from warren.data.sample import IMAGE_MARK, Sample
from warren.errors import BadSampleError, ConfigError
from warren.evaluate.accuracy import exact_match
from warren.evaluate.ask_model import one_line
from warren.evaluate.multiple_choice import MultipleChoice
from warren.inference import Prompt
from warren.inference.transformers_engine.offline import OfflineGenerator

PREDICTIONS = pa.schema(
    [
        ("key", pa.string()),
        ("source", pa.string()),
        ("question", pa.string()),
        ("truth", pa.string()),
        ("answer", pa.string()),
        ("correct", pa.bool_()),
        ("num_choices", pa.int32()),
        ("problem", pa.string()),
    ]
)


@dataclass(frozen=True)
class Prediction:
    """The answer of a model to one sample, and whether it is right.

    Attributes:
        num_choices: How many answers there were to choose from; 0 where the model wrote its own.
        problem: Why the sample could not be asked: it is neither right nor wrong then.
    """

    key: str
    source: str
    question: str = ""
    truth: str = ""
    answer: str = ""
    correct: bool = False
    num_choices: int = 0
    problem: str | None = None


@dataclass(frozen=True)
class SampleQuestion:
    """What a sample asks: its first question with that question's images, and the answer to compare with."""

    key: str
    source: str
    prompt: Prompt
    truth: str

    @classmethod
    def of(cls, row: dict[str, Any]) -> "SampleQuestion":
        """Take the first question of a stored sample.

        Raises:
            BadSampleError: The sample is unsound, or its first answer is nothing to compare with.
        """
        sample = Sample.from_row(row).check()
        question, answer = sample.turns[:2]
        if not answer.text.strip():
            raise BadSampleError("the first answer is empty: there is nothing to compare with")
        if IMAGE_MARK in answer.text:
            raise BadSampleError("the first answer shows an image; only text can be compared")
        images = sample.images[: question.text.count(IMAGE_MARK)]
        return cls(str(sample.key), str(sample.source), Prompt((question,), images, sample.system), answer.text)


class _Asker(Protocol):
    """How a metric asks. Whatever `prepare` raises is the sample's fault; what `answers` raises is not."""

    def prepare(self, question: SampleQuestion) -> Any:
        """Return the question decoded and tokenised; it has `pixels`."""
        ...

    def answers(self, questions: Sequence[SampleQuestion], prepared: Sequence[Any]) -> "list[tuple[str, int]]":
        """Return an answer to each, and how many there were to choose from."""
        ...


class _Writing:
    """`exact_match`: the model writes its answer."""

    def __init__(self, folder: Path, config: EvaluateConfig) -> None:
        self._generator, self._max_new_tokens = OfflineGenerator(folder), config.max_new_tokens
        limit = self._generator.max_context_tokens
        if self._max_new_tokens >= limit:
            raise ConfigError(
                f"evaluate.max_new_tokens is {self._max_new_tokens}, but the model takes {limit} tokens of question "
                "and answer together: lower it"
            )

    def prepare(self, question: SampleQuestion) -> Any:
        return self._generator.prepare(question.prompt, self._max_new_tokens)

    def answers(self, questions: Sequence[SampleQuestion], prepared: Sequence[Any]) -> list[tuple[str, int]]:
        return [(text, 0) for text in self._generator.answer(prepared)]


class _Choosing:
    """`choice`: the model chooses between a sample's answer and the next other ones, in an order that tells nothing."""

    def __init__(self, folder: Path, config: EvaluateConfig) -> None:
        self._chooser, self._num_choices = MultipleChoice(folder), config.num_choices

    def prepare(self, question: SampleQuestion) -> Any:
        return self._chooser.prepare(question.prompt, question.truth)

    def answers(self, questions: Sequence[SampleQuestion], prepared: Sequence[Any]) -> list[tuple[str, int]]:
        truths, answers = [question.truth for question in questions], []
        for place, shown in enumerate(prepared):
            # Sorted, so that the place of the right answer says nothing.
            choices = sorted(list(dict.fromkeys((*truths[place:], *truths[:place])))[: self._num_choices])
            answers.append((choices[self._chooser.choose(shown, choices)], len(choices)))
        return answers


PredictBatch = Callable[[Sequence[dict[str, Any]]], list[Prediction]]


def load_predictor(config: EvaluateConfig, folder: Path) -> PredictBatch:
    """Load a model and return the function that predicts batches of stored samples with it, in their order.

    Raises:
        ReleaseError: The folder does not load.
        ConfigError: The options do not fit the model.
    """
    asker: _Asker = _Choosing(folder, config) if config.metric == "choice" else _Writing(folder, config)

    def predict(rows: Sequence[dict[str, Any]]) -> list[Prediction]:
        questions: list[_PreparedQuestion] = []
        predictions: dict[int, Prediction] = {}
        for place, row in enumerate(rows):
            try:
                question = SampleQuestion.of(row)
                questions.append(_PreparedQuestion(place, question, asker.prepare(question)))
            except Exception as error:  # decoding and tokenising read nothing but the sample: it caused what they raise
                predictions[place] = _left_out(row, error)
        for place, reason in _without_comparison(questions, config).items():
            predictions[place] = _left_out(rows[place], BadSampleError(reason))
        questions = [each for each in questions if each.place not in predictions]
        prepared = [each.prepared for each in questions]
        shown = _with_others_images(prepared, config.num_choices) if config.shuffled_images else prepared
        answers = asker.answers([each.question for each in questions], shown)
        for each, answer in zip(questions, answers, strict=True):
            predictions[each.place] = _prediction(each.question, *answer)
        return [predictions[place] for place in range(len(rows))]

    return predict


@dataclass(frozen=True)
class _PreparedQuestion:
    """A question of a batch, decoded and tokenised, with its place in the batch."""

    place: int
    question: SampleQuestion
    prepared: Any


def _without_comparison(questions: Sequence[_PreparedQuestion], config: EvaluateConfig) -> dict[int, str]:
    """Return the samples of a batch that cannot be asked, with the reason: the batch has none to compare them with."""
    reasons: dict[int, str] = {}
    if config.shuffled_images:
        counts = Counter(len(each.prepared.pixels) for each in questions)
        reason = "no other sample of its batch shows as many images: none to show instead; raise batch_size"
        lonely = [each for each in questions if len(each.prepared.pixels) and counts[len(each.prepared.pixels)] == 1]
        reasons |= {each.place: reason for each in lonely}
    left = [each for each in questions if each.place not in reasons]
    if config.metric == "choice" and len({each.question.truth for each in left}) < 2:
        reason = "all samples of its batch have the same answer: nothing to choose from; raise batch_size"
        reasons |= {each.place: reason for each in left}
    return reasons


def to_table(predictions: Sequence[Prediction]) -> pa.Table:
    """Return predictions as rows of `PREDICTIONS`."""
    rows = [{key: _storable(value) for key, value in asdict(prediction).items()} for prediction in predictions]
    return pa.Table.from_pylist(rows, schema=PREDICTIONS)


def _storable(value: Any) -> Any:
    """Replace what UTF-8 cannot hold: a hostile text, or a message that quotes one."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _prediction(question: SampleQuestion, answer: str, num_choices: int) -> Prediction:
    text, truth = question.prompt.turns[0].text, question.truth
    right = exact_match(answer, truth)
    return Prediction(question.key, question.source, text, truth, answer.strip(), right, num_choices)


def _left_out(row: dict[str, Any], error: Exception) -> Prediction:
    return Prediction(str(row.get("key")), str(row.get("source")), problem=one_line(error))


def _with_others_images(prepared: Sequence[Any], distance: int) -> list[Any]:
    """Give every sample the images of another sample that has as many and is not among its choices."""
    moved = list(prepared)
    for count in {len(each.pixels) for each in prepared}:
        alike = [place for place, each in enumerate(prepared) if len(each.pixels) == count]
        # Further than the choices reach, so that the image shown belongs to none of them.
        shift = distance if distance < len(alike) else len(alike) // 2
        for place, other in zip(alike, alike[shift:] + alike[:shift], strict=True):
            moved[place] = _with_images_of(prepared[place], prepared[other])
    return moved


def _with_images_of(own: Any, other: Any) -> Any:
    digests = {"digests": other.digests} if hasattr(other, "digests") else {}
    return replace(own, pixels=other.pixels, **digests)
