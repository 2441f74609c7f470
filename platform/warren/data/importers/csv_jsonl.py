"""CSV, TSV and JSONL tables whose rows name images by URL or path."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import IO, Self

from warren.config import IngestConfig
from warren.data.importers.files import empty_file, is_whole, opened, unpacked_name
from warren.data.importers.fingerprints import label, range_fingerprint
from warren.data.importers.importer import Piece, Raw
from warren.data.importers.record_files import RecordFiles
from warren.data.importers.row_parsers import SourceRow, csv_rows, delimited_rows, group, line_rows
from warren.data.sample import Sample
from warren.errors import BadSampleError
from warren.storage import Location

_ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson")


@dataclass(frozen=True)
class TextTable(RecordFiles):
    """Rows of text tables; the first line of a CSV or TSV names its columns.

    Attributes:
        quoted: Whether cells may be in quotes; None: in a CSV they may, in a TSV they may not.
    """

    SUFFIXES = (*_ENDINGS, *(f"{ending}.gz" for ending in _ENDINGS))

    quoted: bool | None = None

    @classmethod
    def of(cls, config: IngestConfig) -> Self:
        """Find the tables of a configuration and check their columns."""
        table = replace(super().of(config), quoted=config.quoted)
        for file in map(Location, table.files):
            if _has_header(file) and (names := table._header(file)) is not None:
                table.records.check_fields(names, file)
        return table

    def pieces(self, samples_per_shard: int) -> Iterator[Piece]:
        """Cut the tables into ranges of rows."""
        for uri in self.files:
            location = Location(uri)
            if is_whole(location):
                yield Piece(uri)
                continue
            with opened(location) as file:
                for start, stop, rows in group(self._body(location, file), samples_per_shard):
                    yield Piece(uri, start, stop, rows)

    def fingerprint(self, piece: Piece) -> str:
        """Identify a range by its bytes and by the names of the columns."""
        location = Location(piece.path)
        header = "\0".join(self._header(location) or ()) if _has_header(location) else ""
        return range_fingerprint(piece.path, piece.start, piece.stop, header)

    def read(self, piece: Piece) -> Iterator[Raw]:
        """Yield a range's rows."""
        name, location = label(piece.path, self.files), Location(piece.path)
        header = self._header(location) if _has_header(location) else None
        for place, row in enumerate(self._rows(location, piece)):
            key = f"{name}-{piece.start:012d}-{place:06d}"
            source = f"{location.name}, byte {piece.start}, row {place}"
            if isinstance(row, Raw):
                yield row
            elif row.fault:
                yield Raw.unusable(key, source, row.fault)
            else:
                yield Raw(key, source, partial(self._load, key, source, row, header))

    def _rows(self, location: Location, piece: Piece) -> Iterator[SourceRow | Raw]:
        if piece.stop:
            data = io.BytesIO(location.read_range(piece.start, piece.stop))
            yield from self._parsed(location, data, is_start=False)
            return
        with opened(location) as file:
            if not file.peek(1):  # type: ignore[attr-defined]  # both kinds of files are buffered
                yield empty_file(location, label(piece.path, self.files))
                return
            yield from self._body(location, file)

    def _body(self, location: Location, file: IO[bytes]) -> Iterator[SourceRow]:
        """Yield the rows of a whole file, without its header."""
        rows = self._parsed(location, file, is_start=True)
        if _has_header(location):
            next(rows, None)
        return rows

    def _parsed(self, location: Location, file: IO[bytes], is_start: bool) -> Iterator[SourceRow]:
        if not _has_header(location):
            return line_rows(file, location, is_start)
        quoted = self.quoted if self.quoted is not None else _delimiter(location) == ","
        if quoted:
            return csv_rows(file, location, is_start, _delimiter(location))
        return delimited_rows(file, location, is_start, _delimiter(location))

    def _header(self, location: Location) -> list[str] | None:
        """Return the columns' names, None for an empty file."""
        with opened(location) as file:
            first = next(self._parsed(location, file, is_start=True), None)
        return (
            None if first is None else [cell.encode("latin-1").decode(errors="replace") for cell in first.value or ()]
        )

    def _load(self, key: str, source: str, row: SourceRow, header: list[str] | None) -> Sample:
        record = _json(row.value) if header is None else _cells(row.value, header)
        return self.records.sample(key, source, record)


def _cells(cells: list[str], header: list[str]) -> dict[str, str]:
    if len(cells) > len(header):
        raise BadSampleError(f"the row has {len(cells)} cells, the header {len(header)}")
    try:
        return {name: cell.encode("latin-1").decode() for name, cell in zip(header, cells, strict=False)}
    except UnicodeDecodeError as error:
        raise BadSampleError(f"the row is not UTF-8: {error.reason}") from None


def _json(line: bytes) -> object:
    try:
        return json.loads(line)
    except UnicodeDecodeError as error:
        raise BadSampleError(f"the line is not UTF-8: {error.reason}") from None
    except (RecursionError, ValueError) as error:
        raise BadSampleError(f"the line is no JSON object: {error}") from None


def _has_header(location: Location) -> bool:
    return unpacked_name(location).endswith((".csv", ".tsv"))


def _delimiter(location: Location) -> str:
    return "\t" if unpacked_name(location).endswith(".tsv") else ","
