"""Checks of answers: empty ones, ones that repeat themselves, and what a release answers to its sanity questions."""

import base64
import json
import logging
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from warren.data.sample import IMAGE_MARK
from warren.errors import NotFoundError
from warren.rollout.machine import Judgement
from warren.storage import Location

logger = logging.getLogger(__name__)

QUESTION_FILES = ("golden.json", "golden/questions.json", "golden/cases.json")
_MAX_QUESTIONS = 200
_SHORTEST_LOOP = 24  # characters; shorter answers may well repeat a word
_LOOP_REPEATS = 4
_LONG = 200  # characters from which compression tells loops from prose
_LOOPS_COMPRESS_TO = 0.2  # prose of that length stays above 0.4
# All four built-in questions answered worse is refused, three are not; see `sign_test`.
_DEGENERATE_LEVEL = 0.07
_WORDS = re.compile(r"\w+")


@dataclass(frozen=True)
class SanityQuestion:
    """A question that the controller asks the engines of both releases.

    Attributes:
        image: Encoded bytes; None for a question without an image.
        expected: The right answer; None where it is not known.
    """

    text: str
    image: bytes | None = None
    expected: str | None = None


BUILT_IN = tuple(
    SanityQuestion(text)
    for text in ("What is a cat?", "Name three colours.", "Describe a sunny day.", "What is two plus two?")
)
"""Asked where a release brings no questions: they show an engine that answers nothing, or the same over and over."""


@dataclass(frozen=True)
class Reply:
    """What a release answered to a question; None if it failed."""

    text: str | None

    @property
    def is_degenerate(self) -> bool:
        """Whether it is no answer at all."""
        return self.text is None or not self.text.strip() or is_repetitive(self.text)

    def is_wrong(self, question: SanityQuestion) -> bool:
        """Whether it differs from the known answer, in more than case and punctuation."""
        return question.expected is not None and _words(self.text) != _words(question.expected)


def is_repetitive(text: str) -> bool:
    """Tell whether a text runs in a loop, by its second half's period or by how well it compresses."""
    data = text.strip().encode()
    if len(data) < _SHORTEST_LOOP:
        return False
    tail = data[len(data) // 2 :] if len(data) >= 2 * _SHORTEST_LOOP else data
    if _period(tail) * _LOOP_REPEATS <= len(tail):
        return True
    return len(data) >= _LONG and len(zlib.compress(data, 9)) < _LOOPS_COMPRESS_TO * len(data)


def read_questions(release: Location) -> tuple[SanityQuestion, ...]:
    """Return the sanity questions that a release brings; the built-in ones if it brings none.

    The file is a list, or an object with a list `cases`. A case has `question` and perhaps `expected` and `image`, a
    `data:` URI or a path relative to the release; or `turns` and `images`, as golden cases have. Others are left out.
    """
    for file in QUESTION_FILES:
        try:
            value = (release / file).read_json()
        except NotFoundError:
            continue
        except json.JSONDecodeError:
            logger.warning("%s/%s is not JSON, so its questions are not asked", release, file)
            continue
        cases = value.get("cases", []) if isinstance(value, dict) else value
        read = (_question(release, case) for case in cases[:_MAX_QUESTIONS])
        questions = tuple(question for question in read if question is not None)
        if questions:
            return questions
    return BUILT_IN


def judge_answers(
    questions: Sequence[SanityQuestion],
    candidate: Sequence[Reply],
    stable: Sequence[Reply] | None,
    max_extra: float,
    false_alarm: float,
) -> Judgement:
    """Judge a candidate by its answers, beside the serving release's to the same questions.

    Args:
        stable: None if nothing serves; then only a candidate that mostly answers nothing is refused.
        max_extra: Fraction of worse answers that is tolerated.
        false_alarm: Probability at which a candidate as good as the serving release is refused for wrong answers.
    """
    num_bad = sum(reply.is_degenerate for reply in candidate)
    if stable is None:
        is_bad = num_bad > len(questions) / 2
        return Judgement(not is_bad, f"{num_bad} of {len(questions)} answers are empty or repeat themselves")
    pairs = list(zip(questions, candidate, stable, strict=True))
    degenerate = [(new.is_degenerate, old.is_degenerate) for _, new, old in pairs]
    if is_worse(degenerate, max_extra, _DEGENERATE_LEVEL):
        old = sum(each for _, each in degenerate)
        return Judgement(
            False, f"{num_bad} of {len(pairs)} answers are empty or repeat themselves ({old} of the serving release's)"
        )
    wrong = [(new.is_wrong(question), old.is_wrong(question)) for question, new, old in pairs if question.expected]
    if is_worse(wrong, max_extra, false_alarm):
        new, old = (sum(column) for column in zip(*wrong, strict=True))
        return Judgement(False, f"{new} of {len(wrong)} answers are wrong ({old} of the serving release's)")
    agreeing = sum(_words(new.text) == _words(old.text) for _, new, old in pairs)
    return Judgement(True, f"{agreeing} of {len(pairs)} answers agree with the serving release's")


def is_worse(pairs: Sequence[tuple[bool, bool]], max_extra: float, level: float) -> bool:
    """Tell whether the first of each pair is faulty more often, by a margin and by the exact sign test."""
    only_new, only_old = sum(new and not old for new, old in pairs), sum(old and not new for new, old in pairs)
    if not pairs or (only_new - only_old) / len(pairs) <= max_extra:
        return False
    return sign_test(only_new, only_new + only_old) < level


def sign_test(num_faults: int, num_different: int) -> float:
    """Return the probability of so many heads, or more, in so many tosses of a fair coin."""
    from scipy.stats import binom  # here, because who only records answers does not judge them

    return float(binom.sf(num_faults - 1, num_different, 0.5)) if num_different else 1.0


def _question(release: Location, case: Any) -> SanityQuestion | None:
    if not isinstance(case, dict):
        return None
    text, image, expected = case.get("question", case.get("prompt")), case.get("image"), case.get("expected")
    turns = case.get("turns")
    if isinstance(turns, list) and len(turns) == 1:
        text, image = turns[0]["text"].replace(IMAGE_MARK, "").strip(), next(iter(case.get("images", ())), None)
    if not isinstance(text, str) or not text:
        return None
    try:
        data = _image(release, image) if isinstance(image, str) and image else None
    except (NotFoundError, ValueError) as error:
        logger.warning("the image of the question %r cannot be read: %s", text[:80], error)
        return None
    return SanityQuestion(text, data, expected if isinstance(expected, str) else None)


def _image(release: Location, reference: str) -> bytes:
    if reference.startswith("data:"):
        return base64.b64decode(reference.partition(",")[2], validate=True)
    if reference.startswith("/") or ".." in reference.split("/"):
        raise ValueError(f"{reference!r} is not a path below the release")
    return (release / reference).read_bytes()


def _words(text: str | None) -> list[str]:
    return _WORDS.findall((text or "").lower())


def _period(data: bytes) -> int:
    """Return the length of the shortest piece of which `data` is repetitions, the last one perhaps cut off."""
    border = [0] * len(data)  # Knuth, Morris and Pratt's table of borders
    length = 0
    for index in range(1, len(data)):
        while length and data[index] != data[length]:
            length = border[length - 1]
        length += data[index] == data[length]
        border[index] = length
    return len(data) - border[-1]
