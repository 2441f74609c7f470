"""Labels and fingerprints of source files: they name a piece, and show whether it changed."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

from warren.storage import Location

_HASHED_BYTES = 8 << 20


def label(path: str, files: Sequence[str]) -> str:
    """Return a file's label: its path below the folder that holds all files of the source."""
    parents = [file.split("/")[:-1] for file in files]
    shared = 0
    while all(len(parent) > shared and parent[shared] == parents[0][shared] for parent in parents):
        shared += 1
    return "/".join(path.split("/")[shared:]).encode(errors="replace").decode()


def file_fingerprint(path: str) -> str:
    """Identify a file's bytes: by size and ETag on S3, by digest or, for large files, size and time on a disk."""
    location = Location(path)
    size, tag = location.store.stamp(location.key)
    if not location.is_s3 and size <= _HASHED_BYTES:
        tag = _digest(path, tag)  # a file that was only copied or installed again counts as unchanged
    return f"{size}-{tag}"


def range_fingerprint(path: str, start: int, stop: int, header: str = "") -> str:
    """Identify a byte range by its bytes, and by the header that says what they mean; a range to 0 is a whole file."""
    if not stop:
        return file_fingerprint(path)
    digest = hashlib.sha256(header.encode(errors="replace") + b"\0")
    digest.update(Location(path).read_range(start, stop))
    return digest.hexdigest()


@lru_cache(maxsize=1024)
def _digest(path: str, _tag: str) -> str:
    digest = hashlib.sha256()
    with Location(path).open() as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()[:16]
