"""Parquet tables as the Hugging Face hub has them: pictures as `{bytes, path}` structs, lists of them, or paths."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from warren.config import IngestConfig
from warren.config.ingest import ColumnsConfig
from warren.data.importers.fingerprints import file_fingerprint, label
from warren.data.importers.importer import Piece, Raw, compose
from warren.data.importers.inputs import Pictures, find_files, one_or_many
from warren.data.sample import Sample
from warren.errors import BadSampleError, ConfigError, CorruptDataError
from warren.storage import Location

_ROWS_AT_ONCE = 32
_STREAM_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class Parquet:
    """Rows of Parquet files.

    Attributes:
        files: URIs of the files.
        columns: Which columns hold picture and text.
        pictures: Where pictures are looked for that are not in the table.
    """

    name: str
    licence: str
    origin: str
    files: tuple[str, ...]
    columns: ColumnsConfig
    pictures: Pictures

    @classmethod
    def of(cls, config: IngestConfig) -> "Parquet":
        """Find the files of a configuration and check their columns.

        Raises:
            ConfigError: A column is not there.
        """
        files = find_files(config.path or "", (".parquet",))
        uris = tuple(file.uri for file in files)
        pictures = Pictures(Location.parse(config.images or files[0].uri.rpartition("/")[0]).uri)
        found = cls(
            config.name or "", config.licence, config.origin or str(config.path), uris, config.columns, pictures
        )
        there = _open(files[0]).schema_arrow.names
        check_columns(config.columns, there, files[0])
        return found

    def pieces(self, samples_per_shard: int) -> Iterator[Piece]:
        """Join row groups to pieces of about a shard."""
        for uri in self.files:
            metadata = _open(Location(uri)).metadata
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
        wanted = [c for c in (self.columns.image, self.columns.caption, self.columns.conversations) if c is not None]
        place = 0
        try:
            groups = list(range(piece.start, piece.stop))
            for batch in _open(location).iter_batches(_ROWS_AT_ONCE, row_groups=groups, columns=wanted):
                for row in batch.to_pylist():
                    key = f"{name}-{piece.start:05d}-{place:07d}"
                    source = f"{location.name}, row groups {piece.start} to {piece.stop - 1}, row {place}"
                    yield Raw(key, source, partial(self._load, key, source, row))
                    place += 1
        except (OSError, pa.ArrowException) as error:
            raise CorruptDataError(f"{location} is damaged: {error}") from None

    def _load(self, key: str, source: str, row: dict[str, Any]) -> Sample:
        columns = self.columns
        images = [self._image(value) for value in one_or_many(row.get(columns.image or ""))]
        caption, conversations = row.get(columns.caption or ""), row.get(columns.conversations or "")
        if columns.caption is not None and not images and columns.image is not None:
            raise BadSampleError("it has no image")
        return compose(key, source, images, caption=caption, conversations=conversations)

    def _image(self, value: object) -> bytes:
        if isinstance(value, bytes):
            return value
        if isinstance(value, dict):
            found = value.get("bytes")
            return found if isinstance(found, bytes) else self.pictures.fetch(value.get("path"))
        return self.pictures.fetch(value)


def check_columns(columns: ColumnsConfig, there: list[str], file: Location) -> None:
    """Refuse a mapping to columns that a table does not have.

    Raises:
        ConfigError: One is missing.
    """
    for role in ("image", "caption", "conversations"):
        name = getattr(columns, role)
        if name is not None and name not in there:
            raise ConfigError(f"ingest.columns.{role} is {name!r}, but {file} has: {', '.join(there)}")


def _open(location: Location) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(location.open(), buffer_size=_STREAM_BUFFER_BYTES)
    except pa.ArrowInvalid as error:
        raise CorruptDataError(f"{location} is no Parquet file: {error}") from None
