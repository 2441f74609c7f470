"""CSV, TSV and JSONL tables whose rows name pictures by URL or path."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from warren.config import IngestConfig
from warren.config.ingest import ColumnsConfig
from warren.data.importers.fingerprints import label, range_fingerprint
from warren.data.importers.importer import Piece, Raw, compose
from warren.data.importers.inputs import Pictures, find_files, one_or_many
from warren.data.importers.parquet import check_columns
from warren.data.importers.spans import group, line_spans
from warren.data.sample import Sample
from warren.errors import BadSampleError, DataError
from warren.storage import Location

_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")


@dataclass(frozen=True)
class Table:
    """Rows of text tables; a CSV's first line names its columns.

    Attributes:
        files: URIs of the tables.
        columns: Which columns hold picture and text.
        pictures: Where relative paths start from.
    """

    name: str
    licence: str
    origin: str
    files: tuple[str, ...]
    columns: ColumnsConfig
    pictures: Pictures

    @classmethod
    def of(cls, config: IngestConfig) -> "Table":
        """Find the tables of a configuration and check their columns."""
        files = find_files(config.path or "", _SUFFIXES)
        for file in files:
            if _is_csv(file):
                check_columns(config.columns, _header(file), file)
        uris = tuple(file.uri for file in files)
        pictures = Pictures(Location.parse(config.images or files[0].uri.rpartition("/")[0]).uri)
        return cls(config.name or "", config.licence, config.origin or str(config.path), uris, config.columns, pictures)

    def pieces(self, samples_per_shard: int) -> Iterator[Piece]:
        """Cut the tables into ranges of rows."""
        for uri in self.files:
            location = Location(uri)
            with location.open() as file:
                quoted = _is_csv(location)
                for start, stop, rows in group(line_spans(file, quoted, skip_lines=int(quoted)), samples_per_shard):
                    yield Piece(uri, start, stop, rows)

    def fingerprint(self, piece: Piece) -> str:
        """Identify a range by its bytes and by the names of the columns."""
        location = Location(piece.path)
        header = "\0".join(_header(location)) if _is_csv(location) else ""
        return range_fingerprint(piece.path, piece.start, piece.stop, header)

    def read(self, piece: Piece) -> Iterator[Raw]:
        """Yield a range's rows."""
        name, location = label(piece.path, self.files), Location(piece.path)
        data = location.read_range(piece.start, piece.stop)
        for place, row in enumerate(_rows(location, data)):
            key = f"{name}-{piece.start:012d}-{place:06d}"
            source = f"{location.name}, byte {piece.start}, row {place}"
            yield Raw(key, source, partial(self._load, key, source, row))

    def _load(self, key: str, source: str, row: object) -> Sample:
        if not isinstance(row, dict):
            raise BadSampleError("the line is no JSON object")
        columns = self.columns
        names = list(one_or_many(row.get(columns.image or "")))
        if columns.caption is not None and not names and columns.image is not None:
            raise BadSampleError("it names no image")
        images = [self.pictures.fetch(name) for name in names]
        if columns.caption is not None:
            return compose(key, source, images, caption=row.get(columns.caption))
        return compose(key, source, images, conversations=_parsed(row.get(columns.conversations or "")))


def _rows(location: Location, data: bytes) -> Iterator[Any]:
    """Parse whole rows; a JSON line that is none gives None."""
    if _is_csv(location):
        try:
            text = io.StringIO(data.decode(), newline="")
        except UnicodeDecodeError as error:
            raise DataError(f"{location} is not UTF-8: {error}") from None
        yield from csv.DictReader(text, _header(location), delimiter=_delimiter(location))
        return
    for line in data.split(b"\n"):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError:
                yield None


def _parsed(value: object) -> object:
    """Return conversations that a CSV holds as JSON text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise BadSampleError("its conversations are no JSON") from None


def _is_csv(location: Location) -> bool:
    return location.uri.endswith((".csv", ".tsv"))


def _delimiter(location: Location) -> str:
    return "\t" if location.uri.endswith(".tsv") else ","


def _header(location: Location) -> list[str]:
    with location.open() as file:
        start, stop = next(line_spans(file, quoted=True), (0, 0))
    first = location.read_range(start, stop).decode("utf-8-sig", errors="replace")
    return next(csv.reader([first], delimiter=_delimiter(location)), [])
