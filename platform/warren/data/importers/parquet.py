"""Parquet tables as the Hugging Face hub has them: images as `{bytes, path}` structs, lists of them, or paths."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from warren.config import IngestConfig
from warren.data.importers.files import empty_file, find_files
from warren.data.importers.fingerprints import file_fingerprint, label
from warren.data.importers.importer import Piece, Raw
from warren.data.importers.record import RecordReader
from warren.errors import CorruptDataError
from warren.storage import Location

_ROWS_AT_ONCE = 32
_STREAM_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class Parquet:
    """Rows of Parquet files.

    Attributes:
        files: URIs of the files.
        records: Makes samples of rows.
    """

    name: str
    licence: str
    origin: str
    files: tuple[str, ...]
    records: RecordReader

    @classmethod
    def of(cls, config: IngestConfig) -> "Parquet":
        """Find the files of a configuration and check their columns.

        Raises:
            ConfigError: A column is not there.
        """
        files = find_files(config.path or "", (".parquet",))
        uris = tuple(file.uri for file in files)
        records = RecordReader.of(config, files[0].uri.rpartition("/")[0])
        for file in files:
            if not _is_empty(file):
                records.check_fields(_open(file).schema_arrow.names, file)
                break
        return cls(config.name or "", config.licence, config.origin or str(config.path), uris, records)

    def pieces(self, samples_per_shard: int) -> Iterator[Piece]:
        """Join row groups to pieces of about a shard.

        Raises:
            ConfigError: A file lacks a column.
        """
        for uri in self.files:
            if _is_empty(Location(uri)):
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
    """Turn a batch into Python values; a row that has none (text that is not UTF-8, a date of year 20000) into why."""
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


def _is_empty(location: Location) -> bool:
    return location.store.size(location.key) == 0


def _open(location: Location) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(location.open(), buffer_size=_STREAM_BUFFER_BYTES)
    except pa.ArrowInvalid as error:
        raise CorruptDataError(f"{location} is no Parquet file: {error}") from None
