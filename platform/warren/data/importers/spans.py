"""Cuts text files into byte ranges of whole records, in one pass and constant memory."""

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from typing import IO

from warren.errors import DataError

Span = tuple[int, int]
_CHUNK_BYTES = 1 << 20
_MAX_RECORD_CHARACTERS = 64 << 20
_BETWEEN = re.compile(r"[\s,]*")


def group(spans: Iterable[Span], size: int) -> Iterator[tuple[int, int, int]]:
    """Join consecutive spans: yield start, stop and number of records of each `size` of them."""
    start, stop, count = 0, 0, 0
    for begin, end in spans:
        start = start if count else begin
        stop, count = end, count + 1
        if count == size:
            yield start, stop, count
            count = 0
    if count:
        yield start, stop, count


def line_spans(file: IO[bytes], quoted: bool, skip_lines: int = 0) -> Iterator[Span]:
    """Yield the byte range of each line that is not blank.

    Args:
        file: Opened at its start.
        quoted: A line's end between double quotes belongs to the record, as in CSV (RFC 4180).
        skip_lines: Records at the start to leave out: a header.
    """
    position = start = quotes = number = 0
    for line in file:
        position += len(line)
        quotes += line.count(b'"') if quoted else 0
        if quotes % 2:
            continue
        if number >= skip_lines and (position - start > len(line) or line.strip()):
            yield start, position
        number += 1
        start = position
    if quotes % 2:
        raise DataError(f"the quote opened in the record at byte {start} is never closed")


def array_spans(file: IO[bytes], name: str) -> Iterator[Span]:
    """Yield the byte range of each object of a JSON array.

    Raises:
        DataError: The file is no array of objects; the message has the byte.
    """
    decode = codecs.getincrementaldecoder("utf-8-sig")().decode
    parse = json.JSONDecoder().raw_decode
    text, position, at = "", 0, 0  # what is decoded and not yet consumed; its place in the file; its place in `text`
    opened = False
    while True:
        at_before = at
        at = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]  # matches always
        position += at - at_before  # white space and commas are single bytes
        if at < len(text) and not opened:
            if text[at] != "[":
                raise DataError(f"{name}: a JSON array of records is expected, it begins with {text[at]!r}")
            opened, at, position = True, at + 1, position + 1
            continue
        if at < len(text) and text[at] == "]":
            return
        try:
            record, end = parse(text, at)
        except json.JSONDecodeError as error:
            chunk = file.read(_CHUNK_BYTES)
            if not chunk or len(text) - at > _MAX_RECORD_CHARACTERS:
                raise DataError(f"{name}: the record at byte {position} is no JSON: {error.msg}") from None
            text, at = text[at:] + decode(chunk), 0
            continue
        if not isinstance(record, dict):
            raise DataError(f"{name}: the record at byte {position} is a {type(record).__name__}, not an object")
        size = len(text[at:end].encode())
        yield position, position + size
        position, at = position + size, end
