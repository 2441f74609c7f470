"""What a benchmark asks: questions, with images that are read when they are needed."""

import base64
import binascii
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

import pyarrow as pa

from warren.data.sample import IMAGE_MARK
from warren.errors import BadSampleError, DataError, NotFoundError
from warren.storage import Location
from warren.storage.parquet import open_parquet

_REPEAT = "#"  # between a published id and the number of its repetition


class QuestionImage(Protocol):
    """Where the bytes of one encoded image are. Sources are small and can be pickled."""

    def read(self) -> bytes:
        """Return the encoded image.

        Raises:
            BadSampleError: There is no such image.
        """


@dataclass(frozen=True)
class ImageFile:
    """An image that is a file."""

    location: Location

    def read(self) -> bytes:
        """Return the encoded image."""
        try:
            return self.location.read_bytes()
        except NotFoundError as error:
            raise BadSampleError(f"the image is missing: {error}") from None


@dataclass(frozen=True)
class ImageBase64:
    """An image in a text table."""

    text: str

    def read(self) -> bytes:
        """Return the encoded image."""
        try:
            return base64.b64decode(self.text, validate=True)
        except binascii.Error as error:
            raise BadSampleError(f"the image is not valid Base64: {error}") from None


@dataclass(frozen=True)
class ImageCell:
    """An image in a Parquet file: Hugging Face's struct of `bytes` and `path`, plain bytes, or a list of either."""

    location: Location
    row_group: int
    row: int
    column: str
    item: int = 0

    def read(self) -> bytes:
        """Return the encoded image."""
        value = _column(self.location, self.row_group, self.column)[self.row].as_py()
        if isinstance(value, list):
            value = value[self.item] if self.item < len(value) else None
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise BadSampleError(f"{self.location}: no image in column {self.column!r} of row {self.row}")
        return data


@lru_cache(maxsize=2)
def _column(location: Location, row_group: int, column: str) -> Any:
    """Read one column of a row group; questions in order read each row group once."""
    with location.open() as file:
        try:
            table = open_parquet(file, str(location)).read_row_group(row_group, columns=[column])
            return table.column(column)
        except pa.ArrowException as error:
            raise BadSampleError(f"{location}: row group {row_group} cannot be read: {error}") from None


@dataclass(frozen=True)
class Question:
    """One question of a benchmark.

    Attributes:
        key: Its id, unique in the benchmark.
        text: The question as it is sent and as answers files hold it. It may place its images by `<image>` marks;
            otherwise they stand before it.
        images: Its images, in order.
        group: The row of the benchmark's table that it belongs to, such as a subtask.
        cluster: What it shares with other questions, usually its image: such questions are not independent.
        fixed_answer: What the convention takes as the answer without asking a model; None for almost all questions.
    """

    key: str
    text: str
    images: tuple[QuestionImage, ...] = ()
    group: str = ""
    cluster: str = ""
    fixed_answer: str | None = None

    @property
    def prompt(self) -> str:
        """The text of the user's turn, with one `<image>` mark for each image."""
        if not self.images or IMAGE_MARK in self.text:
            return self.text
        return f"{IMAGE_MARK}\n" * len(self.images) + self.text

    def check(self) -> "Question":
        """Return the question if it can be asked.

        Raises:
            DataError: It has no text, or another number of marks than images.
        """
        if not self.text.strip():
            raise DataError(f"question {self.key!r} has no text")
        marks = self.prompt.count(IMAGE_MARK)
        if marks != len(self.images):
            raise DataError(f"question {self.key!r} has {marks} {IMAGE_MARK} marks and {len(self.images)} images")
        return self


def number_repeats(questions: Iterable[Question]) -> Iterator[Question]:
    """Make the keys of a benchmark unique that publishes one id for several questions: `a`, `a#2`, `a#3`."""
    counts: dict[str, int] = {}
    for question in questions:
        count = counts[question.key] = counts.get(question.key, 0) + 1
        yield replace(question, key=repeated_key(question.key, count))


def repeated_key(published: str, count: int) -> str:
    """Return the key of the question that is the `count`-th with its published id."""
    return published if count == 1 else f"{published}{_REPEAT}{count}"


def published_id(key: str) -> str:
    """Return the id that a key was made of by `number_repeats`."""
    head, mark, tail = key.rpartition(_REPEAT)
    return head if mark and tail.isdigit() else key
