"""Bunny's and LLaVA's files: one JSON array of records with `image` and `conversations`, and a folder of images."""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from warren.data.importers.files import empty_file, is_whole, opened
from warren.data.importers.fingerprints import label, range_fingerprint
from warren.data.importers.importer import Piece, Raw
from warren.data.importers.record_files import RecordFiles
from warren.data.importers.row_parsers import SourceRow, array_rows, group
from warren.data.printable import shown
from warren.storage import Location

_SUFFIX = re.compile(r"\.json(\.gz)?$", re.IGNORECASE)


@dataclass(frozen=True)
class BunnyJson(RecordFiles):
    """Conversations of JSON files. The driver reads them once to cut them; each task reads only its own bytes."""

    SUFFIXES = (".json", ".json.gz")

    def pieces(self, samples_per_shard: int) -> Iterator[Piece]:
        """Cut the arrays into ranges of records."""
        for uri in self.files:
            if is_whole(Location(uri)):
                yield Piece(uri)
                continue
            with opened(Location(uri)) as file:
                for start, stop, rows in group(array_rows(file, uri), samples_per_shard):
                    yield Piece(uri, start, stop, rows)

    def fingerprint(self, piece: Piece) -> str:
        """Identify a range by its bytes."""
        return range_fingerprint(piece.path, piece.start, piece.stop)

    def read(self, piece: Piece) -> Iterator[Raw]:
        """Yield a range's records."""
        location = Location(piece.path)
        name = _SUFFIX.sub("", label(piece.path, self.files))
        for number, row in enumerate(self._rows(location, piece)):
            # The key is the record's place, because ids are not unique in LLaVA's files.
            key = f"{name}-{piece.start:012d}-{number:05d}"
            if isinstance(row, Raw):
                yield row
            elif row.fault:
                yield Raw.unusable(key, location.name, row.fault)
            else:
                source = _source(location, row.value)
                yield Raw(key, source, partial(self.records.sample, key, source, row.value))

    def _rows(self, location: Location, piece: Piece) -> Iterator[SourceRow | Raw]:
        if piece.stop:
            data = b"[" + location.read_range(piece.start, piece.stop) + b"]"
            yield from array_rows(io.BytesIO(data), location)
            return
        with opened(location) as file:
            if not file.peek(1):  # type: ignore[attr-defined]  # both kinds of files are buffered
                yield empty_file(location, label(piece.path, self.files))
                return
            yield from array_rows(file, location)


def _source(location: Location, record: Any) -> str:
    fields = record if isinstance(record, dict) else {}
    image = fields.get("image")
    return f"{location.name}#{_label(fields.get('id', ''))} {_label(image) if image else ''}".strip()


def _label(value: object) -> str:
    """Return a short text unchanged, so that the sample's check sees it, and anything else as messages show it."""
    return value if isinstance(value, str) and len(value) <= 300 else shown(value)
