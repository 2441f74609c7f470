"""A location in storage, named by a URI. It holds only text, so it pickles and compares by value."""

import io
import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.fs

from warren.errors import ConfigError, ConflictError
from warren.storage import arrow_s3
from warren.storage.files import FileStore
from warren.storage.range_file import RangeFile
from warren.storage.store import Store

ResultT = TypeVar("ResultT")
_READ_AHEAD_BYTES = 4 << 20
_SCHEMES = ("s3://", "file://")


@dataclass(frozen=True)
class Location:
    """A folder or object in storage.

    Attributes:
        uri: Normalised: `s3://bucket/key` or an absolute path.
    """

    uri: str

    @classmethod
    def parse(cls, text: str) -> "Location":
        """Take `s3://bucket/key`, `file:///path` or a path.

        Raises:
            ConfigError: Another scheme, or an S3 URI without a bucket or with credentials.
        """
        text = text.strip()
        if text.startswith("s3://"):
            if "@" in text.removeprefix("s3://").split("/", 1)[0]:
                raise ConfigError(  # without the text: it would be in every log
                    "an s3:// location has a user name or key before an '@': locations are written into records and "
                    "logs, so give keys by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and here s3://bucket/prefix"
                )
            if not text.removeprefix("s3://").strip("/"):
                raise ConfigError(f"{text!r} names no bucket: expected s3://bucket/prefix")
            return cls("s3://" + text.removeprefix("s3://").strip("/"))
        if text.startswith("file://"):
            text = text.removeprefix("file://")
        elif "://" in text:
            raise ConfigError(f"{text!r}: storage is one of {', '.join(_SCHEMES)} or a plain path")
        if not text:
            raise ConfigError("an empty path names no storage")
        return cls(os.path.abspath(os.path.expanduser(text)))

    def __truediv__(self, name: str) -> "Location":
        return Location(f"{self.uri}/{name}")

    def __str__(self) -> str:
        return self.uri

    @property
    def name(self) -> str:
        """Last part of the URI."""
        return self.uri.rsplit("/", 1)[-1]

    @property
    def key(self) -> str:
        """The path inside its filesystem: `bucket/key` or an absolute path."""
        return self.uri.removeprefix("s3://")

    @property
    def is_s3(self) -> bool:
        """Whether the location is in S3 rather than on a file system."""
        return self.uri.startswith("s3://")

    @property
    def filesystem(self) -> pyarrow.fs.FileSystem:
        """A pyarrow filesystem that opens `key`; safe to pickle to Ray workers."""
        return arrow_s3.filesystem() if self.is_s3 else pyarrow.fs.LocalFileSystem()

    @property
    def store(self) -> Store:
        """The store that holds `key`."""
        if not self.is_s3:
            return FileStore()
        from warren.storage.s3 import S3Store  # here, because boto3 takes seconds to import and some tasks only read

        return S3Store()

    def list(self) -> list["Location"]:
        """Every object below this folder, at any depth, sorted."""
        prefix = "s3://" if self.is_s3 else ""
        return [Location(prefix + key) for key in self.store.list(self.key)]

    def read_bytes(self) -> bytes:
        """Return the object's bytes."""
        return self.store.read(self.key)[0]

    def retrying(self, read: Callable[[], ResultT]) -> ResultT:
        """Run a read through `filesystem`, waiting for storage that is away until the deadline.

        Raises:
            StorageError: The deadline has passed.
        """
        return arrow_s3.read_retrying(self.uri, read) if self.is_s3 else read()

    def read_range(self, start: int, stop: int) -> bytes:
        """Return bytes `start` … `stop - 1` of the object."""
        return self.store.read_range(self.key, start, stop)

    def open(self) -> io.BufferedReader:
        """Open the object as a seekable file; at most `_READ_AHEAD_BYTES` of it are in memory."""
        return io.BufferedReader(RangeFile(self.store, self.key), _READ_AHEAD_BYTES)

    def read_json(self) -> Any:
        """Return the object parsed as JSON."""
        return json.loads(self.read_bytes())

    def create_bytes(self, data: bytes) -> None:
        """Write an object that must not exist; atomic.

        Raises:
            ConflictError: It exists.
        """
        self.store.create(self.key, data)

    def put_bytes(self, data: bytes) -> None:
        """Make the object hold `data`, whatever it held before: atomically, and without a write if it does already."""
        while True:
            try:
                return self.create_bytes(data)
            except ConflictError:
                present, tag = self.store.read(self.key)
                if present == data:
                    return None
            with suppress(ConflictError):  # another writer was faster: read again
                return self.store.replace(self.key, data, tag)

    def put_json(self, value: Any) -> None:
        """Make the object hold `value` as readable JSON."""
        self.put_bytes(_to_json(value))

    def create_json(self, value: Any) -> None:
        """Write `value` as readable JSON to an object that must not exist; atomic."""
        self.create_bytes(_to_json(value))

    def upload(self, source: Path) -> None:
        """Copy a local file here; a reader sees all of it or nothing."""
        self.store.upload(source, self.key)


def _to_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
