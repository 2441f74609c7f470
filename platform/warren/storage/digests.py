"""SHA-256 digests, and the entries of a manifest: path, size and digest of each file."""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from warren.errors import CorruptDataError, UnsafePathError

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class FileEntry:
    """One file of a manifest; `path` is relative to the manifest's folder and stays inside it.

    Raises:
        UnsafePathError: The path leads out of the folder.
    """

    path: str
    bytes: int
    sha256: str

    def __post_init__(self) -> None:
        check_relative(self.path)

    def to_json(self) -> dict[str, Any]:
        """Return the value as JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> "FileEntry":
        """Rebuild what `to_json` returned.

        Raises:
            CorruptDataError: It is no entry of a manifest.
            UnsafePathError: Its path leads out of the manifest's folder.
        """
        try:
            path, size, sha256 = entry["path"], entry["bytes"], entry["sha256"]
        except (KeyError, TypeError):
            raise CorruptDataError(f"{str(entry)[:200]!r} is no entry of a manifest: path, bytes, sha256") from None
        return cls(path, size, sha256)


def check_relative(path: object) -> str:
    """Return a path that names a file below a folder, whichever folder it is joined to.

    Raises:
        UnsafePathError: It is absolute, climbs with `..`, has empty parts, or is no text.
    """
    parts = path.split("/") if isinstance(path, str) else []
    if not parts or any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
        raise UnsafePathError(
            f"the file {str(path)[:200]!r} is refused: a manifest names files inside its own folder, with relative "
            "paths; restore the manifest, or do not use what it belongs to"
        )
    return str(path)


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
