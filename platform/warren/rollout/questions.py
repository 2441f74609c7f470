"""The sanity questions that the controller asks the engines of both releases before a candidate gets traffic."""

import base64
import json
import logging
from dataclasses import dataclass
from typing import Any

from warren.data.sample import IMAGE_MARK
from warren.errors import NotFoundError
from warren.storage import Location

logger = logging.getLogger(__name__)

QUESTION_FILES = ("golden.json", "golden/questions.json", "golden/cases.json")
_MAX_QUESTIONS = 2000
_MAX_TOKENS = 64


@dataclass(frozen=True)
class SanityQuestion:
    """A question that the controller asks the engines of both releases.

    Attributes:
        image: Encoded bytes; None for a question without an image.
        expected: The right answer; None where it is not known.
        max_tokens: Longest answer.
    """

    text: str
    image: bytes | None = None
    expected: str | None = None
    max_tokens: int = _MAX_TOKENS


BUILT_IN = (
    SanityQuestion("What is a cat, and how does it live?"),
    SanityQuestion("Which three colours are on the flag of France?"),
    SanityQuestion("What is the weather like on a sunny day?"),
    SanityQuestion("How many are two and two, and how do you know that?"),
)
"""Asked where a release brings no questions: they show an engine that answers nothing, or the same over and over."""


def read_questions(release: Location) -> tuple[SanityQuestion, ...]:
    """Return the sanity questions that a release brings; the built-in ones if it brings none.

    The file is a list, or an object with a list `cases`. A case has `question` and perhaps `expected`, `max_tokens` and
    `image`, a `data:` URI or a path relative to the release; or `turns` and `images`, as golden cases have. Others are
    left out.
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
        images = _Images(release)
        read = (_question(images, case) for case in cases[:_MAX_QUESTIONS])
        questions = tuple(question for question in read if question is not None)
        if questions:
            return questions
    return BUILT_IN


class _Images:
    """The images of a release's questions; each file is read once."""

    def __init__(self, release: Location) -> None:
        self._release = release
        self._read: dict[str, bytes] = {}

    def read(self, reference: str) -> bytes:
        if reference.startswith("data:"):
            return base64.b64decode(reference.partition(",")[2], validate=True)
        # The file may come from elsewhere; it must not make the controller read other objects.
        if reference.startswith("/") or ".." in reference.split("/"):
            raise ValueError(f"{reference!r} is not a path below the release")
        if reference not in self._read:
            self._read[reference] = (self._release / reference).read_bytes()
        return self._read[reference]


def _question(images: _Images, case: Any) -> SanityQuestion | None:
    if not isinstance(case, dict):
        return None
    text, image, expected = case.get("question", case.get("prompt")), case.get("image"), case.get("expected")
    turns, longest = case.get("turns"), case.get("max_tokens")
    # Golden cases of one turn are questions too; later turns would need the earlier answers.
    if isinstance(turns, list) and len(turns) == 1:
        text, image = turns[0]["text"].replace(IMAGE_MARK, "").strip(), next(iter(case.get("images", ())), None)
    if not isinstance(text, str) or not text:
        return None
    try:
        data = images.read(image) if isinstance(image, str) and image else None
    except (NotFoundError, ValueError) as error:
        logger.warning("the image of the question %r cannot be read: %s", text[:80], error)
        return None
    max_tokens = longest if isinstance(longest, int) and 0 < longest <= _MAX_TOKENS else _MAX_TOKENS
    return SanityQuestion(text, data, expected if isinstance(expected, str) else None, max_tokens)
