"""Parquet tables as the Hugging Face hub has them: images as `{bytes, path}` structs, lists of them, or paths."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq

from warren.config import IngestConfig
from warren.data.importers.files import empty_file, is_empty
from warren.data.importers.fingerprints import file_fingerprint, label
from warren.data.importers.importer import Piece, Raw
from warren.data.importers.record_files import RecordFiles
from warren.errors import CorruptDataError
from warren.storage import Location
from warren.storage.parquet import open_parquet

_ROWS_AT_ONCE = 32
_STREAM_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class Parquet(RecordFiles):
    """Rows of Parquet files."""

    SUFFIXES = (".parquet",)

    @classmethod
    def of(cls, config: IngestConfig) -> Self:
        """Find the files of a configuration and check their columns.

        Raises:
            ConfigError: There are none, or the first lacks a column.
        """
        parquet = super().of(config)
        for file in map(Location, parquet.files):
            if not is_empty(file):
                parquet.records.check_fields(_open(file).schema_arrow.names, file)
                break  # the others are checked when they are cut into pieces
        return parquet

    def pieces(self, samples_per_shard: int) -> Iterator[Piece]:
        """Join row groups to pieces of about a shard.

        Raises:
            ConfigError: A file lacks a column.
        """
        for uri in self.files:
            if is_empty(Location(uri)):
                yield Piece(uri, rows=1)
                continue
            file = _open(Location(uri))
            self.records.check_fields(file.schema_arrow.names, Location(uri))
            metadata = file.metadata
            start, rows = 0, 0
            for number in range(metadata.num_row_groups):
                rows += metadata.row_group(number).num_rows
                if rows >= samples_per_shard or number == metadata.num_row_groups - 1:
                    yield Piece(uri, start, number + 1, rows)
                    start, rows = number + 1, 0

    def fingerprint(self, piece: Piece) -> str:
        """Identify row groups by their file."""
        return file_fingerprint(piece.path)

    def read(self, piece: Piece) -> Iterator[Raw]:
        """Yield the rows of a range of row groups.

        Raises:
            CorruptDataError: The file is damaged.
        """
        name, location = label(piece.path, self.files), Location(piece.path)
        if piece.stop == 0:
            yield empty_file(location, name)
            return
        for place, row in enumerate(self._rows(location, piece)):
            key = f"{name}-{piece.start:05d}-{place:07d}"
            source = f"{location.name}, row groups {piece.start} to {piece.stop - 1}, row {place}"
            if isinstance(row, str):
                yield Raw.unusable(key, source, row)
            else:
                yield Raw(key, source, partial(self.records.sample, key, source, row))

    def _rows(self, location: Location, piece: Piece) -> Iterator[dict[str, object] | str]:
        """Yield rows, or why one cannot be read."""
        groups = list(range(piece.start, piece.stop))
        try:
            file = _open(location)
            columns = [name for name in file.schema_arrow.names if name in self.records.fields]
            for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=groups, columns=columns):
                yield from _values(batch)
        except (OSError, pa.ArrowException) as error:
            raise CorruptDataError(f"{location} is damaged: {error}") from None


def _values(batch: pa.RecordBatch) -> Iterator[dict[str, object] | str]:
    """Yield rows as Python values, or why a row has none: text that is not UTF-8, a date in the year 20000."""
    try:
        yield from batch.to_pylist()
        return
    except (ValueError, OverflowError):
        pass
    for place in range(batch.num_rows):
        try:
            yield from batch.slice(place, 1).to_pylist()
        except (ValueError, OverflowError) as error:
            yield f"the row cannot be read: {error}"


def _open(location: Location) -> pq.ParquetFile:
    try:
        return open_parquet(location.open(), str(location), buffer_size=_STREAM_BUFFER_BYTES)
    except pa.ArrowInvalid as error:
        raise CorruptDataError(f"{location} is no Parquet file: {error}") from None
