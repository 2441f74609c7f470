"""Where importers find images: bytes in the record, paths, S3 URIs, URLs, `data:` URIs and Base64."""

import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from warren.data.importers.conversation import first_of
from warren.data.importers.downloads import download
from warren.data.importers.inline_images import inlined, unpacked
from warren.data.printable import is_unicode, shown
from warren.errors import BadSampleError, BucketNotFoundError, ConfigError, NotFoundError
from warren.storage import Location

MAX_IMAGE_BYTES = 256 << 20
"""Larger files are not images, and are not fetched."""

_MAX_S3_KEY_BYTES = 1024
_NAMES = ("path", "url", "image_url", "image")
_BASE64 = ("base64", "b64_json", "data")


@dataclass(frozen=True)
class ImageSources:
    """Finds an image by its name in a raw pair.

    Attributes:
        folder: URI that relative paths start from.
        deadline_s: Time for all downloads of one sample.
    """

    folder: str
    deadline_s: float = 60.0

    def fetch_all(self, values: Sequence[object]) -> tuple[bytes, ...]:
        """Return the bytes of one sample's images; all downloads of it share one deadline.

        Raises:
            BadSampleError: One of them cannot be read.
        """
        stop_s = time.monotonic() + self.deadline_s
        return tuple(self._fetch(value, stop_s) for value in values)

    def fetch(self, name: object) -> bytes:
        """Return an image's bytes.

        Args:
            name: A relative or absolute path, an `s3://` URI, an `http(s)://` URL, a `data:` URI, Base64, the bytes
                themselves, or a mapping that holds one of these (`bytes`, `path`, `url`, `base64`).

        Raises:
            BadSampleError: There is no such image, or it cannot be read.
        """
        return self._fetch(name, time.monotonic() + self.deadline_s)

    def _fetch(self, value: object, stop_s: float) -> bytes:
        if isinstance(value, Mapping):
            value = _content(value)
        if isinstance(value, bytes):
            return value
        if not isinstance(value, str) or not value.strip():
            raise BadSampleError(f"an image is named by {shown(value)!r}, not by a path or URL")
        if (data := inlined(value)) is not None:
            return data
        if value.lstrip()[:8].lower().startswith(("http://", "https://")):
            return download(value.strip(), stop_s, self.deadline_s, MAX_IMAGE_BYTES)
        return self._read(value.strip())

    def _read(self, name: str) -> bytes:
        _check_name(name)
        absolute = "://" in name or name.startswith("/")
        try:
            location = Location.parse(name if absolute else f"{self.folder}/{_without_dots(name)}")
            _check_place(location)
            return location.read_bytes()
        except BucketNotFoundError as error:
            if not absolute:  # the bucket of all images is missing: the job must end, not quarantine every sample
                raise
            raise BadSampleError(f"the image cannot be read: {error}") from None
        except (NotFoundError, ConfigError) as error:
            raise BadSampleError(f"the image cannot be read: {error}") from None


def _content(value: Mapping[str, object]) -> object:
    """Return the bytes or the name of an image in a mapping: Hugging Face's `{bytes, path}`, `{url}`, or Base64."""
    data = value.get("bytes")
    if isinstance(data, bytes):
        return data
    encoded = data if isinstance(data, str) else first_of(value, _BASE64)
    if isinstance(encoded, str):
        return unpacked(encoded)
    named = first_of(value, _NAMES)
    return named.get("url") if isinstance(named, Mapping) else named


def _check_name(name: str) -> None:
    """Refuse names that no storage can hold, or that lead elsewhere.

    Raises:
        BadSampleError: It is such a name.
    """
    if "\0" in name or not is_unicode(name):
        raise BadSampleError(f"{shown(name)!r} is no path: it holds a NUL or half of a surrogate pair")
    if ".." in name.split("/"):
        raise BadSampleError(f"{shown(name)!r} leads out of the images' folder")


def _without_dots(name: str) -> str:
    """Remove `./`, which file systems ignore and S3 takes for part of a key."""
    return "/".join(part for part in name.split("/") if part != ".")


def _check_place(location: Location) -> None:
    """Refuse a name that storage would report as its own error, although the record is at fault.

    Raises:
        BadSampleError: It is no regular file of an image's size, or no possible S3 key.
    """
    if location.is_s3:
        if "/" not in location.key or len(location.key.encode()) > _MAX_S3_KEY_BYTES:
            raise BadSampleError(f"the image cannot be read: {shown(location.uri)!r} names no object")
        return
    try:
        status = Path(location.key).stat()
    except PermissionError:
        return  # reading it gives the storage's error
    except (OSError, ValueError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else getattr(error, "strerror", None) or error
        raise BadSampleError(f"the image cannot be read: {shown(location.uri)}: {reason}") from None
    if not stat.S_ISREG(status.st_mode):
        raise BadSampleError(f"the image cannot be read: {shown(location.uri)} is no file but a folder or device")
    if status.st_size > MAX_IMAGE_BYTES:
        raise BadSampleError(f"the image has {status.st_size} bytes; at most {MAX_IMAGE_BYTES} are read")
