"""The interface of storage: conditional writes, transfers of whole files, ranges and listings."""

from pathlib import Path
from typing import Protocol


class Store(Protocol):
    """Objects under `/`-separated keys. Both implementations pass the same contract tests.

    A tag identifies one version of an object; it is opaque and changes with every write.
    """

    def read(self, key: str) -> tuple[bytes, str]:
        """Return an object's bytes and its tag.

        Raises:
            NotFoundError: There is no such object.
        """

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        """Return bytes `start` … `stop - 1` of an object that has at least so many."""

    def create(self, key: str, data: bytes) -> None:
        """Write an object that must not exist yet, atomically.

        Raises:
            ConflictError: The object exists.
        """

    def replace(self, key: str, data: bytes, tag: str) -> None:
        """Write an object only if its tag is still `tag`, atomically.

        Raises:
            ConflictError: The object changed since it was read.
        """

    def upload(self, source: Path, key: str) -> None:
        """Copy a local file; a reader sees the whole object or none."""

    def download(self, key: str, target: Path) -> None:
        """Copy an object to a local file, retrying broken transfers."""

    def copy(self, source: str, target: str) -> None:
        """Copy an object to another key of this store, without this machine's disk; a reader sees all of it or none.

        Raises:
            NotFoundError: There is no such object.
        """

    def sha256(self, key: str) -> str:
        """Return the SHA-256 of an object's bytes in hex: the store's own if it has one, else of the bytes read.

        Raises:
            NotFoundError: There is no such object.
        """

    def size(self, key: str) -> int:
        """Return an object's size in bytes.

        Raises:
            NotFoundError: There is no such object.
        """

    def stamp(self, key: str) -> tuple[int, str]:
        """Return an object's size in bytes, and a text that changes when it is written: an ETag or a time.

        Raises:
            NotFoundError: There is no such object.
        """

    def list(self, prefix: str) -> list[str]:
        """Return every key below the folder `prefix`, sorted by UTF-8 bytes, at any depth."""

    def delete(self, key: str) -> None:
        """Remove an object; a missing object is no error."""
