"""Where importers find files and pictures: folders, patterns, S3 keys, URLs."""

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import urllib3

from warren.errors import BadSampleError, BucketNotFoundError, ConfigError, NotFoundError
from warren.storage import Location

MAX_IMAGE_BYTES = 256 << 20
"""Larger files are not pictures, and are not fetched."""

_WILDCARDS = "*?["
_TIMEOUT = urllib3.Timeout(connect=5.0, read=30.0)
_RETRIES = urllib3.Retry(4, redirect=5, backoff_factor=0.5, status_forcelist=(429, 500, 502, 503, 504))
_CHUNK_BYTES = 1 << 20


def find_files(path: str, suffixes: tuple[str, ...]) -> list[Location]:
    """Return the files that a path means, sorted: one file, a folder's, or those that fit a pattern.

    Raises:
        ConfigError: There are none.
    """
    if any(character in path for character in _WILDCARDS):
        first = min(path.index(character) for character in _WILDCARDS if character in path)
        pattern = Location.parse(path).uri
        found = [
            file
            for file in Location.parse(path[:first].rpartition("/")[0] or "/").list()
            if fnmatch.fnmatchcase(file.uri, pattern)
        ]
    elif path.endswith(suffixes):
        found = [Location.parse(path)]
    else:
        found = [file for file in Location.parse(path).list() if file.uri.endswith(suffixes)]
    if not found:
        raise ConfigError(f"ingest.path {path!r}: no files that end in {', '.join(suffixes)} are there")
    return found


@dataclass(frozen=True)
class Pictures:
    """Finds a picture by what a raw pair calls it.

    Attributes:
        folder: URI that relative paths start from.
    """

    folder: str

    def fetch(self, name: object) -> bytes:
        """Return a picture's bytes.

        Args:
            name: A relative or absolute path, an `s3://` URI or an `http(s)://` URL.

        Raises:
            BadSampleError: There is no such picture, or it cannot be had.
        """
        if not isinstance(name, str) or not name.strip():
            raise BadSampleError(f"a picture is named by {name!r}, not by a path or URL")
        if name.startswith(("http://", "https://")):
            return _download(name)
        if ".." in name.split("/"):
            raise BadSampleError(f"{name!r} leads out of the images' folder")
        absolute = "://" in name or name.startswith("/")
        try:
            location = Location.parse(name if absolute else f"{self.folder}/{name}")
            return location.read_bytes()
        except BucketNotFoundError as error:
            if not absolute:  # the images' own bucket is missing: no picture will be found
                raise
            raise BadSampleError(f"the image cannot be read: {error}") from None
        except (NotFoundError, ConfigError) as error:
            raise BadSampleError(f"the image cannot be read: {error}") from None


def _download(url: str) -> bytes:
    try:
        answer = _pool().request("GET", url, preload_content=False)
        if answer.status != 200:
            raise BadSampleError(f"the image cannot be fetched: HTTP {answer.status}")
        data = bytearray()
        for chunk in answer.stream(_CHUNK_BYTES):
            data += chunk
            if len(data) > MAX_IMAGE_BYTES:
                raise BadSampleError(f"the image has more than {MAX_IMAGE_BYTES} bytes")
    except (urllib3.exceptions.HTTPError, ValueError) as error:
        raise BadSampleError(f"the image cannot be fetched: {error}") from None
    return bytes(data)


@lru_cache(maxsize=1)
def _pool() -> urllib3.PoolManager:
    return urllib3.PoolManager(timeout=_TIMEOUT, retries=_RETRIES, maxsize=16)


def one_or_many(value: object) -> Iterator[object]:
    """Yield the pictures that a field names: none, one, or a list of them."""
    if isinstance(value, list | tuple):
        yield from value
    elif value is not None and value != "":
        yield value
