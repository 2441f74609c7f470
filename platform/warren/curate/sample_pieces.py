"""The samples of the parent datasets, in pieces of consecutive row groups."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from warren.curate.row_mask import StoredRows
from warren.data.manifest import Manifest, Shard
from warren.data.stream import read_group
from warren.storage import Location

ROWS_PER_PIECE = 50_000
ROWS_PER_IMAGE_PIECE = 1_000
"""For tasks that decode images, which take about a thousand times longer than those that read other columns."""


@dataclass(frozen=True)
class Parent:
    """A dataset from which samples are selected."""

    reference: str
    folder: Location
    manifest: Manifest


@dataclass(frozen=True)
class StoredShard:
    """A shard of a parent dataset.

    Attributes:
        reference: The dataset whose manifest lists it.
        folder: The folder of that dataset.
        first: The row of its first sample.
    """

    reference: str
    folder: Location
    shard: Shard
    first: int

    @property
    def stop(self) -> int:
        """The row behind its last sample."""
        return self.first + self.shard.rows

    def group_rows(self) -> Iterator[tuple[int, int, int]]:
        """Yield the number of each row group, its first row and the row after its last."""
        first = self.first
        for number, rows in enumerate(self.shard.row_groups):
            yield number, first, first + rows
            first += rows


@dataclass(frozen=True)
class SamplePiece:
    """Consecutive row groups that one task reads.

    Attributes:
        shards: The shards that hold them.
        first: The row of its first sample.
        stop: The row behind its last sample.
    """

    number: int
    shards: tuple[StoredShard, ...]
    first: int
    stop: int

    def tables(self, columns: list[str] | None = None) -> Iterator[tuple[int, pa.Table]]:
        """Yield each row group's first row and its samples, one row group in memory at a time."""
        for stored in self.shards:
            for number, first, _ in stored.group_rows():
                if not self.first <= first < self.stop:
                    continue
                yield first, read_group(stored.folder, stored.shard.group(number), columns=columns)

    def records(
        self, columns: list[str] | None, selected: Location | None = None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the row and the columns of each sample.

        Args:
            columns: What is read of a sample; None: everything.
            selected: The stored set of the rows to yield; None: all rows.
        """
        rows = np.arange(self.first, self.stop)
        mask = np.ones(len(rows), bool) if selected is None else StoredRows(selected).contains(rows)
        for first, table in self.tables(columns):
            # Rows are taken before they become Python objects, which is where the time goes.
            places = np.flatnonzero(mask[first - self.first :][: table.num_rows])
            yield from zip((first + places).tolist(), table.take(places).to_pylist(), strict=True)


@dataclass(frozen=True)
class PieceTask:
    """A task about one piece of the samples; the piece's number names its result."""

    piece: SamplePiece

    @property
    def name(self) -> str:
        """The name of its result."""
        return f"{self.piece.number:06d}"


def stored_shards(parents: Sequence[Parent]) -> list[StoredShard]:
    """Return all shards of the datasets in order."""
    stored, row = [], 0
    for parent in parents:
        for shard in parent.manifest.shards:
            stored.append(StoredShard(parent.reference, parent.folder, shard, row))
            row += shard.rows
    return stored


def sample_pieces(shards: Sequence[StoredShard], rows_per_piece: int = ROWS_PER_PIECE) -> list[SamplePiece]:
    """Cut datasets into pieces of whole row groups, of at least `rows_per_piece` samples but the last."""
    made: list[SamplePiece] = []
    waiting: list[StoredShard] = []
    begin = end = 0
    for stored in shards:
        waiting.append(stored)
        for _, _, end in stored.group_rows():
            if end - begin >= rows_per_piece:
                made.append(SamplePiece(len(made), tuple(waiting), begin, end))
                # A shard that is cut belongs to both pieces; each reads the row groups in its own range.
                waiting, begin = [stored] if end < stored.stop else [], end
    if end > begin:
        made.append(SamplePiece(len(made), tuple(waiting), begin, end))
    return made


def key_of(pieces: Sequence[SamplePiece], row: int) -> str:
    """Return the key of one row, for messages."""
    return str(read_row(pieces, row, ["key"])["key"])


def read_row(pieces: Sequence[SamplePiece], row: int, columns: list[str]) -> dict[str, Any]:
    """Read the columns of one sample; reading many samples this way is slow."""
    piece = next(piece for piece in pieces if row < piece.stop)
    stored = next(stored for stored in piece.shards if row < stored.stop)
    number, first, _ = next(group for group in stored.group_rows() if row < group[2])
    table = read_group(stored.folder, stored.shard.group(number), row - first, 1, columns)
    record: dict[str, Any] = table.to_pylist()[0]
    return record
