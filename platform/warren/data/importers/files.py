"""The files that a path names, and how they are opened: folders, patterns with `*` and `{a,b}`, S3 keys, `.gz`."""

import fnmatch
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from warren.data.importers.importer import Raw
from warren.errors import ConfigError, CorruptDataError, NotFoundError
from warren.storage import Location

_BRACES = re.compile(r"\{([^{}]*)\}")
_NUMBERS = re.compile(r"(\d+)\.\.(\d+)")
_WILDCARDS = "*?["
_PACKED = ".gz"
_BOM = b"\xef\xbb\xbf"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def find_files(path: str, suffixes: tuple[str, ...]) -> list[Location]:
    """Return the files that a path names, sorted: one file, those of a folder, or those that match a pattern.

    An existing path is used as it is, whatever characters it has. Otherwise `{a,b}` and `{000..099}` stand for each of
    their alternatives, and `*`, `?` and `[…]` for what they match. The case of suffixes does not matter.

    Raises:
        ConfigError: There are none, or an alternative has none.
    """
    by_uri: dict[str, Location] = {}
    for written in [path] if _exists(path) else _alternatives(path):
        files = _matching(written, suffixes)
        if not files:
            raise ConfigError(f"ingest.path {written!r}: no files that end in {', '.join(suffixes)} are there")
        by_uri |= {file.uri: file for file in files}
    return list(by_uri.values())


def ends_in(location: Location, suffixes: tuple[str, ...]) -> bool:
    """Whether a file's name has one of some endings, in any case."""
    return location.uri.lower().endswith(suffixes)


def is_packed(location: Location) -> bool:
    """Whether a file is compressed, so that it can only be read from its start."""
    return ends_in(location, (_PACKED,))


def unpacked_name(location: Location) -> str:
    """Return a file's name in lower case and without `.gz`."""
    return location.name.lower().removesuffix(_PACKED)


def is_whole(location: Location) -> bool:
    """Whether a file is read as one piece: it is empty, or compressed."""
    return is_packed(location) or is_empty(location)


def is_empty(location: Location) -> bool:
    """Return whether a file has no bytes."""
    return location.store.size(location.key) == 0


@contextmanager
def opened(location: Location) -> Iterator[IO[bytes]]:
    """Open a text file for reading from its start, unpacked.

    Raises:
        CorruptDataError: A compressed file is damaged.
    """
    with location.open() as file:
        if not is_packed(location):
            yield file
            return
        try:
            with gzip.open(file) as unpacked:
                yield io.BufferedReader(unpacked)  # type: ignore[arg-type]
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise CorruptDataError(f"{location} is damaged or ends early: {error}") from None


def start_of_text(file: IO[bytes], name: object) -> int:
    """Skip a byte order mark, and return the position after it.

    Raises:
        CorruptDataError: The file is UTF-16.
    """
    first = file.read(len(_BOM))
    if first[:2] in _UTF_16:
        raise CorruptDataError(f"{name}: byte 0 begins UTF-16; convert it: iconv -f UTF-16 -t UTF-8")
    if first == _BOM:
        return len(_BOM)
    file.seek(0)
    return 0


def empty_file(location: Location, key: str) -> Raw:
    """Return an unusable sample that stands for an empty file, so that the file is counted and named."""
    return Raw.unusable(key, location.uri, f"the file {location.name!r} is empty (0 bytes)")


def _exists(path: str) -> bool:
    location = Location.parse(path)
    if not any(character in path for character in f"{_WILDCARDS}{{"):
        return True  # without a pattern the path is used as it is
    return _is_file(location) or bool(location.list())


def _alternatives(path: str) -> list[str]:
    """Expand `{a,b}` and `{000..099}`, as shells and WebDataset do."""
    braces = _BRACES.search(path)
    if braces is None:
        return [path]
    if numbers := _NUMBERS.fullmatch(braces[1]):
        first, last = int(numbers[1]), int(numbers[2])
        parts = [f"{number:0{len(numbers[1])}d}" for number in range(first, last + 1)]
    else:
        parts = braces[1].split(",")
    before, after = path[: braces.start()], path[braces.end() :]
    return [written for part in parts for written in _alternatives(f"{before}{part}{after}")]


def _matching(path: str, suffixes: tuple[str, ...]) -> list[Location]:
    location = Location.parse(path)
    inside = [file for file in location.list() if ends_in(file, suffixes)]
    if not inside and ends_in(location, suffixes) and _is_file(location):
        return [location]
    if inside or not any(character in path for character in _WILDCARDS):
        return inside
    for pattern, wildcards in ((location.uri, _WILDCARDS), (location.uri.replace("[", "[[]"), "*?")):
        first = min((path.index(character) for character in wildcards if character in path), default=len(path))
        folder = Location.parse(path[:first].rpartition("/")[0] or ("/" if path.startswith("/") else "."))
        if matched := [file for file in folder.list() if fnmatch.fnmatchcase(file.uri, pattern)]:
            return matched
    return []


def _is_file(location: Location) -> bool:
    try:
        location.store.size(location.key)
    except NotFoundError:
        return False
    return True
