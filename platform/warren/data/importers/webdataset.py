"""WebDataset tars as img2dataset writes them: `KEY.jpg`, `KEY.txt` and `KEY.json` side by side, one after the other."""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from warren.config import IngestConfig
from warren.data.importers.fingerprints import file_fingerprint, label
from warren.data.importers.importer import Piece, Raw, compose
from warren.data.importers.inputs import MAX_IMAGE_BYTES, find_files
from warren.data.sample import Sample
from warren.errors import BadSampleError, CorruptDataError
from warren.storage import Location

_IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "img")
_TEXTS = ("txt", "caption", "json")
_END_BYTES = 1024  # POSIX: two blocks of zeros
_Members = dict[str, bytes]


@dataclass(frozen=True)
class WebDataset:
    """Picture-caption pairs of tar files; a `.json` with `conversations` is taken for the text.

    Attributes:
        files: URIs of the tars; each is one piece, and is read in one pass.
    """

    name: str
    licence: str
    origin: str
    files: tuple[str, ...]

    @classmethod
    def of(cls, config: IngestConfig) -> "WebDataset":
        """Find the tars of a configuration."""
        files = find_files(config.path or "", (".tar", ".tar.gz", ".tgz"))
        uris = tuple(file.uri for file in files)
        return cls(config.name or "", config.licence, config.origin or str(config.path), uris)

    def pieces(self, samples_per_shard: int) -> Iterator[Piece]:
        """Take every tar for a piece; it may become several shards."""
        return (Piece(uri) for uri in self.files)

    def fingerprint(self, piece: Piece) -> str:
        """Identify a tar."""
        return file_fingerprint(piece.path)

    def read(self, piece: Piece) -> Iterator[Raw]:
        """Yield a tar's groups of members.

        Raises:
            CorruptDataError: The tar is damaged or ends early.
        """
        tar, name = label(piece.path, self.files), Location(piece.path).name
        for place, (key, members) in enumerate(_groups(Location(piece.path))):
            unique, source = f"{tar}-{place:06d}-{key}", f"{name}/{key}"
            yield Raw(unique, source, partial(_load, unique, source, members))


def _groups(location: Location) -> Iterator[tuple[str, _Members]]:
    """Yield consecutive members that share their name up to the first dot of its last part (WebDataset's rule)."""
    key, members = "", _Members()
    _check_end(location)
    try:
        with location.open() as file, tarfile.open(fileobj=file, mode="r|*") as tar:
            for member in tar:
                folder, slash, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                if not member.isfile() or not stem:
                    continue
                if f"{folder}{slash}{stem}" != key and members:
                    yield key, members
                    members = {}
                key = f"{folder}{slash}{stem}"
                suffix = suffix.lower()
                if suffix in _IMAGES + _TEXTS and member.size <= MAX_IMAGE_BYTES:
                    members[suffix] = tar.extractfile(member).read()  # type: ignore[union-attr]  # a file has content
    except (tarfile.TarError, EOFError, OSError) as error:
        raise CorruptDataError(f"{location} is damaged or ends early, behind sample {key!r}: {error}") from None
    if members:
        yield key, members


def _check_end(location: Location) -> None:
    """Refuse a tar that was cut: `tarfile` takes a cut between members for the end."""
    size = location.store.size(location.key)
    if location.uri.endswith(".tar") and any(location.read_range(max(0, size - _END_BYTES), size)):
        raise CorruptDataError(f"{location} is damaged or ends early: it has {size} bytes and no end mark")


def _load(key: str, source: str, members: _Members) -> Sample:
    facts = _facts(members.get("json"))
    source = str(facts.get("url") or source)
    images = [members[suffix] for suffix in _IMAGES if suffix in members]
    if not images and facts.get("status") not in (None, "success"):
        raise BadSampleError(f"img2dataset could not fetch it: {facts.get('error_message') or facts['status']}")
    if "conversations" in facts:
        return compose(key, source, images, conversations=facts["conversations"])
    if not images:
        raise BadSampleError("it has no image")
    try:
        written = members.get("txt", members.get("caption"))
        caption = facts.get("caption") if written is None else written.decode()
    except UnicodeDecodeError:
        raise BadSampleError("its caption is not UTF-8") from None
    return compose(key, source, images, caption=caption)


def _facts(text: bytes | None) -> dict[str, Any]:
    try:
        facts = json.loads(text or b"{}")
    except ValueError:
        raise BadSampleError("its .json is no JSON") from None
    return facts if isinstance(facts, dict) else {}
