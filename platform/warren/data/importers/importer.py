"""What an importer is: a source cut into pieces, each of which any node can read on its own."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from warren.data.importers.bunny_turns import normalise_turns
from warren.data.sample import IMAGE_MARK, Sample, Turn
from warren.errors import BadSampleError

_ROLES = {"user": "human", "assistant": "gpt"}


@dataclass(frozen=True)
class Piece:
    """A part of a source that one task reads from front to back.

    Attributes:
        path: URI of the file it is in.
        start: Where it begins; bytes, rows or row groups, as its importer counts.
        stop: Where it ends.
        rows: How many samples it holds, good or bad, where that is known before it is read.
    """

    path: str
    start: int = 0
    stop: int = 0
    rows: int | None = None


@dataclass(frozen=True)
class Raw:
    """A sample to be.

    Attributes:
        key: Unique within the dataset, and the same in every attempt.
        source: Where it comes from, for people.
        load: Fetches its pictures and builds it; raises `BadSampleError` if that cannot be.
    """

    key: str
    source: str
    load: Callable[[], Sample]


class Importer(Protocol):
    """One dataset to be. Importers pickle: they are made on the driver and read on any node."""

    @property
    def name(self) -> str:
        """Name of the dataset."""

    @property
    def licence(self) -> str:
        """Licence of its pairs."""

    @property
    def origin(self) -> str:
        """Where its pairs come from."""

    @property
    def files(self) -> tuple[str, ...]:
        """URIs of its source files. A dataset is made anew, as another version, when one of them changes."""

    def fingerprint(self, piece: Piece) -> str:
        """Identify what a piece reads: another text when its samples may be others, though not when others change."""

    def pieces(self, samples_per_shard: int) -> Iterator[Piece]:
        """Cut the source, the same way every time, without holding it in memory.

        Args:
            samples_per_shard: About how many samples a piece should hold, where that is the importer's choice.
        """

    def read(self, piece: Piece) -> Iterator[Raw]:
        """Yield a piece's samples in order. Nothing costly happens before `Raw.load`: a resumed task skips many."""


def compose(
    key: str, source: str, images: Sequence[bytes], *, caption: object = None, conversations: object = None
) -> Sample:
    """Build a sample from what formats commonly hold.

    Args:
        key: Of the sample.
        source: Of the sample.
        images: Encoded pictures.
        caption: A picture's text: the answer to the bare picture. Used if there are no conversations.
        conversations: Messages with `from` and `value` (Bunny, LLaVA) or `role` and `content` (chat formats).

    Raises:
        BadSampleError: Neither is there, or the messages are of another form.
    """
    if conversations is not None:
        if not isinstance(conversations, Sequence) or isinstance(conversations, str | bytes):
            raise BadSampleError(f"conversations are a {type(conversations).__name__}, not a list of messages")
        turns = normalise_turns([_message(message) for message in conversations], bool(images))
    elif isinstance(caption, str) and caption.strip():
        turns = (Turn("user", IMAGE_MARK * len(images)), Turn("assistant", caption.strip()))
    else:
        raise BadSampleError("it has neither a caption nor a conversation")
    return Sample(key, tuple(images), turns, source)


def _message(message: Any) -> Mapping[str, Any]:
    if not isinstance(message, Mapping):
        raise BadSampleError(f"a message is a {type(message).__name__}, not a mapping")
    if "from" in message or "role" not in message:
        return message
    return {"from": _ROLES.get(message["role"], message["role"]), "value": message.get("content")}
