"""Bunny's and LLaVA's files: one JSON array of records with `image` and `conversations`, and a folder of pictures."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from warren.config import IngestConfig
from warren.data.importers.fingerprints import label, range_fingerprint
from warren.data.importers.importer import Piece, Raw, compose
from warren.data.importers.inputs import Pictures, find_files, one_or_many
from warren.data.importers.spans import array_spans, group
from warren.data.sample import Sample
from warren.storage import Location


@dataclass(frozen=True)
class BunnyJson:
    """Conversations of JSON files. The driver passes over them once to cut them; tasks read their own bytes only.

    Attributes:
        files: URIs of the JSON files.
        pictures: Where `image` is looked for.
    """

    name: str
    licence: str
    origin: str
    files: tuple[str, ...]
    pictures: Pictures

    @classmethod
    def of(cls, config: IngestConfig) -> "BunnyJson":
        """Find the files of a configuration."""
        files = find_files(config.path or "", (".json",))
        folder = config.images or files[0].uri.rpartition("/")[0]
        pictures = Pictures(Location.parse(folder).uri)
        uris = tuple(file.uri for file in files)
        return cls(config.name or "", config.licence, config.origin or str(config.path), uris, pictures)

    def pieces(self, samples_per_shard: int) -> Iterator[Piece]:
        """Cut the arrays into ranges of records."""
        for uri in self.files:
            with Location(uri).open() as file:
                for start, stop, rows in group(array_spans(file, uri), samples_per_shard):
                    yield Piece(uri, start, stop, rows)

    def fingerprint(self, piece: Piece) -> str:
        """Identify a range by its bytes."""
        return range_fingerprint(piece.path, piece.start, piece.stop)

    def read(self, piece: Piece) -> Iterator[Raw]:
        """Yield a range's records."""
        location = Location(piece.path)
        text = location.read_range(piece.start, piece.stop)
        for number, record in enumerate(json.loads(b"[" + text + b"]")):
            # Ids are not unique in LLaVA's files, so a record's place is its key.
            key = f"{label(piece.path, self.files).removesuffix('.json')}-{piece.start:012d}-{number:05d}"
            source = f"{location.name}#{record.get('id', '')} {record.get('image') or ''}".strip()
            yield Raw(key, source, partial(self._load, key, source, record))

    def _load(self, key: str, source: str, record: dict[str, Any]) -> Sample:
        images = [self.pictures.fetch(name) for name in one_or_many(record.get("image"))]
        return compose(key, source, images, conversations=record.get("conversations"))
