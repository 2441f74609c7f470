"""What an importer is: a source cut into pieces, each of which any node can read on its own."""

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
    """A sample to be.

    Attributes:
        key: Unique within the dataset, and the same in every attempt.
        source: Where it comes from, for people.
        load: Fetches its images and builds it; raises `BadSampleError` if that cannot be. Any other error that is
            not a `WarrenError` counts as the sample's, too (`warren.data.shards`).
    """

    key: str
    source: str
    load: Callable[[], Sample]

    @classmethod
    def unusable(cls, key: str, source: str, reason: str) -> "Raw":
        """Stand for what cannot be read at all, so that it is counted and named."""
        return cls(key, source, partial(_refuse, reason))


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


def _refuse(reason: str) -> NoReturn:
    raise BadSampleError(reason)
