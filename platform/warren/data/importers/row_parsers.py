"""Text tables and JSON arrays as rows with their byte positions.

The driver cuts a file by these functions and tasks parse it by the same ones, so they agree on what a row is.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any

from warren.data.importers.files import start_of_text
from warren.data.importers.utf8_reader import Utf8Reader
from warren.errors import DataError

_MAX_FIELD_CHARACTERS = 64 << 20
csv.field_size_limit(_MAX_FIELD_CHARACTERS)  # of the process; Python's 131,072 fails at one long caption

_BRACKET = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|["\[\]{}]', re.DOTALL)
_SCALAR = re.compile(r'[^\s,\[\]{}"]+')
_LONGEST_LITERAL = len("-Infinity") + 1  # the error of a cut literal is at its start
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class SourceRow:
    """One record of a file.

    Attributes:
        start: Its first byte.
        stop: The byte behind it.
        value: Cells of a table (each Latin-1 for any bytes), a line's bytes, or what JSON holds.
        fault: Why it cannot be read.
    """

    start: int
    stop: int
    value: Any
    fault: str = ""


def group(rows: Iterable[SourceRow], size: int) -> Iterator[tuple[int, int, int]]:
    """Join consecutive rows: yield start, stop and number of rows of each `size` of them."""
    start, stop, count = 0, 0, 0
    for row in rows:
        start = start if count else row.start
        stop, count = row.stop, count + 1
        if count == size:
            yield start, stop, count
            count = 0
    if count:
        yield start, stop, count


def csv_rows(file: IO[bytes], name: object, is_start: bool = True, delimiter: str = ",") -> Iterator[SourceRow]:
    """Yield the rows of a CSV (RFC 4180): quotes hold commas and line ends together, if a cell begins with one.

    A row in which text follows a closing quote is one row with a fault: nobody can tell what was meant, and reading on
    would join it with its neighbours.

    Args:
        file: Opened at its start, or a part of it that begins with a row.
        name: For errors.
        is_start: It is the file's start, where a byte order mark may stand.
        delimiter: Between cells.

    Raises:
        DataError: A quote is never closed.
    """
    lines = _Lines(file, start_of_text(file, name) if is_start else 0)
    reader = csv.reader(lines, strict=True, delimiter=delimiter)
    while True:
        start = lines.position
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if lines.ended:
                raise DataError(f"{name}: the quote opened in the record at byte {start} is never closed") from None
            yield SourceRow(start, lines.position, None, f"it is no CSV: {error}")
        else:
            if len(cells) > 1 or (cells and cells[0].strip()):
                yield SourceRow(start, lines.position, cells)


def delimited_rows(file: IO[bytes], name: object, is_start: bool = True, delimiter: str = "\t") -> Iterator[SourceRow]:
    """Yield the rows of a table without quoting: a line is a row, and quotes are characters like others."""
    for row in line_rows(file, name, is_start):
        yield SourceRow(row.start, row.stop, row.value.decode("latin-1").rstrip("\r\n").split(delimiter))


def line_rows(file: IO[bytes], name: object, is_start: bool = True) -> Iterator[SourceRow]:
    """Yield the lines that are not blank."""
    position = start_of_text(file, name) if is_start else 0
    for line in file:
        start, position = position, position + len(line)
        if line.strip():
            yield SourceRow(start, position, line)


class _Lines:
    """Lines for Python's CSV reader, and the position so far. In Latin-1 every byte is one character."""

    def __init__(self, file: IO[bytes], position: int) -> None:
        self.position = position
        self.ended = False
        self._lines = io.TextIOWrapper(_Open(file), "latin-1", newline="")  # type: ignore[type-var]

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._lines.readline()
        if not line:
            self.ended = True
            raise StopIteration
        self.position += len(line)
        return line


class _Open(io.RawIOBase):
    """A file that stays open when its text wrapper is closed."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)

    read1 = read


def array_rows(file: IO[bytes], name: object) -> Iterator[SourceRow]:
    """Yield the values of a JSON array.

    A value that Python cannot hold (nested too deeply, a number of too many digits) is a row with a fault.

    Raises:
        DataError: The file is no JSON array, or more than one; the message has the byte.
    """
    text = Utf8Reader(file, name)
    if (character := text.next_character()) != "[":
        raise text.error(f"a JSON array of records is expected, it begins with {character!r}")
    text.advance(1)
    character = text.next_character()
    while character != "]":
        yield _value(text)
        if (character := text.next_character()) not in ("]", ","):
            raise text.error(f"what follows the record is no JSON: expected ',' or ']', not {character!r}")
        if character == ",":
            text.advance(1)
            text.next_character()
    text.advance(1)
    if more := text.next_character():
        raise text.error(f"there is more behind the array, it begins with {more!r}; one file holds one array")


def _value(text: Utf8Reader) -> SourceRow:
    start, fault, value = text.position, "", None
    while True:
        try:
            value, end = _DECODER.raw_decode(text.text, text.at)
        except json.JSONDecodeError as error:
            if not _may_go_on(error, text.text) or not text.more():
                raise DataError(f"{text.name}: the record at byte {start} is no JSON: {error.msg}") from None
        except (RecursionError, ValueError) as error:
            value_end = _end_of_value(text.text, text.at)
            if value_end is None and text.more():
                continue
            end, fault = value_end or len(text.text), f"Python cannot hold its JSON: {error}"
            break
        else:
            if end < len(text.text) or not text.more():  # a number may go on
                break
    text.advance(end - text.at)
    return SourceRow(start, text.position, value, fault)


def _may_go_on(error: json.JSONDecodeError, text: str) -> bool:
    """Whether JSON is wrong only because the rest of it has not been read yet."""
    return error.pos + _LONGEST_LITERAL >= len(text) or error.msg.startswith("Unterminated string")


def _end_of_value(text: str, at: int) -> int | None:
    """Find where a JSON value ends by its brackets alone; None if there is more of it to come."""
    scalar = _SCALAR.match(text, at)
    if scalar:
        return scalar.end() if scalar.end() < len(text) else None
    depth = 0
    for token in _BRACKET.finditer(text, at):
        if token[0] == '"':
            return None
        depth += (token[0] in "[{") - (token[0] in "]}")
        if depth == 0:
            return token.end()
    return None
