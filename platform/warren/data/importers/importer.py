"""The interface of importers: a source is cut into pieces, and any node can read a piece by itself."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NoReturn, Protocol

from warren.data.sample import Sample
from warren.errors import BadSampleError


@dataclass(frozen=True)
class Piece:
    """A part of a source that one task reads from front to back.

    Attributes:
        path: URI of the file it is in.
        start: Where it begins; bytes, rows or row groups, as its importer counts.
        stop: Where it ends; 0 takes the whole file, which cannot be cut or is empty.
        rows: How many samples it holds, good or bad, where that is known before it is read.
    """

    path: str
    start: int = 0
    stop: int = 0
    rows: int | None = None


@dataclass(frozen=True)
class Raw:
    """A sample that is not loaded yet.

    Attributes:
        key: Unique within the dataset, and the same in every attempt.
        source: Where it comes from, for people.
        load: Fetches its images and builds it; raises `BadSampleError` if that is impossible. Any other error that is
            not a `WarrenError` also counts as the sample's fault (`warren.data.shards`).
    """

    key: str
    source: str
    load: Callable[[], Sample]

    @classmethod
    def unusable(cls, key: str, source: str, reason: str) -> "Raw":
        """Return a sample that stands for unreadable data, so that it is counted and named."""
        return cls(key, source, partial(_refuse, reason))


class Importer(Protocol):
    """The source of one dataset. Importers pickle: the driver makes them, and any node reads with them."""

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
        """URIs of its source files. When one of them changes, the dataset needs another version."""

    def fingerprint(self, piece: Piece) -> str:
        """Return a text that changes when the samples of this piece may have changed, and only then."""

    def pieces(self, samples_per_shard: int) -> Iterator[Piece]:
        """Cut the source, the same way every time, without holding it in memory.

        Args:
            samples_per_shard: About how many samples a piece should hold, where that is the importer's choice.
        """

    def read(self, piece: Piece) -> Iterator[Raw]:
        """Yield a piece's samples in order. Nothing costly happens before `Raw.load`: a resumed task skips many."""


def _refuse(reason: str) -> NoReturn:
    raise BadSampleError(reason)
