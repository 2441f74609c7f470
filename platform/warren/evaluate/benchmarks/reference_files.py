"""Reading answers and references, with errors that name the file and the line."""

import fnmatch
import json
from collections.abc import Iterable, Sequence
from typing import Any

from warren.errors import DataError
from warren.evaluate.benchmarks.benchmark import Answer
from warren.storage import Location

_KEYS = ("question_id", "id", "key", "index")
_TEXTS = ("text", "response", "answer", "prediction")
_SHOWN = 3


def read_answers(location: Location) -> tuple[list[Answer], int]:
    """Read an answers file: JSON lines with an id and a text.

    Ids are `question_id`, `id`, `key` or `index`; texts are `text`, `response`, `answer` or `prediction`.

    Returns:
        The answers in file order, and the number of lines that are not JSON. Bunny's scripts pass over such lines.

    Raises:
        DataError: A line has no id or no text, or the file has no answers.
    """
    answers, broken = [], 0
    for number, line in enumerate(read_lines(location), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            broken += 1
            continue
        answers.append(_answer(row, f"{location}: line {number}"))
    if not answers:
        raise DataError(f"{location}: no answers; expected JSON lines with question_id and text")
    return answers, broken


def read_lines(location: Location) -> list[str]:
    """Read the lines of a text file. Only line feeds end a line: answers may hold other separators of Unicode.

    Raises:
        DataError: It is not UTF-8.
    """
    try:
        return location.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{location}: not UTF-8 text: byte {error.start} is 0x{error.object[error.start]:02x}"
        ) from None


def read_json_lines(location: Location) -> list[Any]:
    """Read a reference of JSON lines.

    Raises:
        DataError: A line is not JSON.
    """
    rows = []
    for number, line in enumerate(read_lines(location), 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise DataError(f"{location}: line {number} is not JSON: {error.msg}") from None
    return rows


def read_json(location: Location) -> Any:
    """Read a reference that is one JSON value.

    Raises:
        DataError: It is not JSON.
    """
    try:
        return location.read_json()
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{location}: not JSON: {error}") from None


def find_file(reference: Location, *patterns: str) -> Location:
    """Return the one file that a reference means: itself, or the file below it that matches the first pattern.

    Raises:
        DataError: A folder holds none.
    """
    below = reference.list()
    if not below:
        return reference
    for pattern in patterns:
        matching = [file for file in below if fnmatch.fnmatch(file.name, pattern)]
        if matching:
            return matching[0]
    raise DataError(f"{reference}: no file called {' or '.join(patterns)}")


def by_key(answers: Sequence[Answer]) -> dict[str, Answer]:
    """Index answers by the question's id.

    Raises:
        DataError: Two answers to one question differ.
    """
    unique: dict[str, Answer] = {}
    for answer in answers:
        first = unique.setdefault(answer.key, answer)
        if first.text != answer.text:
            raise DataError(
                f"question {answer.key!r} has two answers, {first.text[:40]!r} and {answer.text[:40]!r}: "
                "give one answers file of one run"
            )
    return unique


def refuse_unknown(keys: Iterable[str], known: Iterable[str], benchmark: str) -> None:
    """Refuse answers to questions that the reference does not have.

    Raises:
        DataError: There are some: the file belongs to another benchmark, split or version.
    """
    known = set(known)
    unknown = [key for key in keys if key not in known]
    if unknown:
        shown = ", ".join(repr(key) for key in unknown[:_SHOWN])
        raise DataError(
            f"{len(unknown)} answers are to questions that this {benchmark} reference does not have ({shown}): "
            "check that answers and reference are of one benchmark, split and version"
        )


def _answer(row: Any, where: str) -> Answer:
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected an object with question_id and text, found {type(row).__name__}")
    key = next((row[name] for name in _KEYS if name in row), None)
    text = next((row[name] for name in _TEXTS if name in row), None)
    if not isinstance(key, str | int) or not isinstance(text, str):
        raise DataError(f"{where}: no id ({', '.join(_KEYS)}) or no text ({', '.join(_TEXTS)})")
    return Answer(str(key), text, str(row.get("prompt") or ""), row)
