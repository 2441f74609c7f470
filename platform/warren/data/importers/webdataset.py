"""WebDataset tars as img2dataset writes them: `KEY.jpg`, `KEY.txt` and `KEY.json` side by side, one after the other."""

import json
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from warren.data.importers.files import empty_file, is_empty
from warren.data.importers.fingerprints import file_fingerprint, label
from warren.data.importers.image_sources import MAX_IMAGE_BYTES
from warren.data.importers.importer import Piece, Raw
from warren.data.importers.record_files import RecordFiles
from warren.data.importers.webdataset_grouping import IMAGES, Member, group_members
from warren.data.printable import shown
from warren.data.sample import Sample
from warren.errors import BadSampleError, CorruptDataError
from warren.storage import Location

_END_BYTES = 1024  # POSIX: two blocks of zeros
_NAMES_SHOWN = 5


@dataclass(frozen=True)
class WebDataset(RecordFiles):
    """Image-caption pairs of tar files; a `.json` with `conversations` counts as the text. One pass reads a tar."""

    SUFFIXES = (".tar", ".tar.gz", ".tgz")

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
        tar, location = label(piece.path, self.files), Location(piece.path)
        if is_empty(location):
            yield empty_file(location, tar)
            return
        for place, (name, members) in enumerate(group_members(_members(location))):
            key, source = f"{tar}-{place:06d}-{name}", f"{location.name}/{name}"
            yield Raw(key, source, partial(self._load, key, source, members))

    def _load(self, key: str, source: str, members: Sequence[Member]) -> Sample:
        for member in members:
            if member.fault:
                raise BadSampleError(f"{shown(member.name)!r} {member.fault}")
        facts = _facts(members)
        images = [member.data for suffix in IMAGES for member in members if member.suffix == suffix]
        texts = [member for member in members if member.suffix in ("txt", "caption")]
        if not images and facts.get("status") not in (None, "success"):
            raise BadSampleError(
                f"img2dataset could not fetch it: {shown(facts.get('error_message') or facts['status'])}"
            )
        if len(texts) > 1 and len({member.data for member in texts}) > 1:
            raise BadSampleError(f"it has {len(texts)} texts: {_names(members)}")
        if not images and not texts and not facts:
            raise BadSampleError(f"it has neither an image nor a text that is known: {_names(members)}")
        written = _decoded(texts[0].data).strip() if texts else ""
        record = {**facts, "caption": written or facts.get("caption"), self.records.columns.image or "image": images}
        url = facts.get("url")
        return self.records.sample(key, url if isinstance(url, str) else source, record)


def _names(members: Sequence[Member]) -> str:
    names = [shown(member.name) for member in members[:_NAMES_SHOWN]]
    return ", ".join(names) + (f" and {len(members) - _NAMES_SHOWN} more" if len(members) > _NAMES_SHOWN else "")


def _facts(members: Sequence[Member]) -> dict[str, Any]:
    """Return the fields of the `.json` members.

    Raises:
        BadSampleError: One is no JSON object.
    """
    facts: dict[str, Any] = {}
    for member in members:
        if member.suffix != "json":
            continue
        try:
            fields = json.loads(member.data.removeprefix(b"\xef\xbb\xbf"))
        except (RecursionError, ValueError):
            raise BadSampleError("its .json is no JSON") from None
        facts |= fields if isinstance(fields, dict) else {}
    return facts


def _decoded(text: bytes) -> str:
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadSampleError("its caption is not UTF-8") from None


def _members(location: Location) -> Iterator[Member]:
    """Yield a tar's files, in their order.

    Raises:
        CorruptDataError: The tar is damaged or ends early.
    """
    last = ""
    _check_end(location)
    try:
        with location.open() as file, tarfile.open(fileobj=file, mode="r|*") as tar:
            for info in tar:
                if info.isdir():
                    continue
                last = info.name
                if not info.isfile():
                    yield Member(info.name, fault="is a link or a device, not a file")
                elif info.size > MAX_IMAGE_BYTES:
                    yield Member(info.name, fault=f"has {info.size} bytes; at most {MAX_IMAGE_BYTES} are read")
                else:
                    data = tar.extractfile(info).read()  # type: ignore[union-attr]  # a file has content
                    yield Member(info.name, data)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise CorruptDataError(f"{location} is damaged or ends early, behind {shown(last)!r}: {error}") from None


def _check_end(location: Location) -> None:
    """Refuse a tar that was cut: `tarfile` takes a cut between members for the end."""
    size = location.store.size(location.key)
    if location.uri.lower().endswith(".tar") and any(location.read_range(max(0, size - _END_BYTES), size)):
        raise CorruptDataError(f"{location} is damaged or ends early: it has {size} bytes and no end mark")
