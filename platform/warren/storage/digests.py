"""Digests and the entries of manifests: a file counts as written when its bytes are known."""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class FileEntry:
    """One file of a manifest; `path` is relative to the manifest's folder."""

    path: str
    bytes: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """Return the value as JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> "FileEntry":
        """Rebuild what `to_json` returned."""
        return cls(path=entry["path"], bytes=entry["bytes"], sha256=entry["sha256"])


def digest_bytes(data: bytes) -> str:
    """Return the SHA-256 of `data` in hex."""
    return hashlib.sha256(data).hexdigest()


def digest_file(path: Path) -> tuple[int, str]:
    """Return size in bytes and SHA-256 in hex of a local file, reading it once."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()
