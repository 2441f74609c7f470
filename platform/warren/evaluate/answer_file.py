"""Answers as Warren stores them: one Parquet file, one row a question, written in the order of the questions.

A request that failed is a row with an error and without an answer: it is neither right nor wrong.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq

from warren.errors import DataError
from warren.evaluate.benchmarks.benchmark import Answer, Answers
from warren.evaluate.benchmarks.question import repeated_key
from warren.evaluate.benchmarks.reference_files import read_answers
from warren.storage import Location
from warren.storage.parquet import read_parquet

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("question", pa.string(), nullable=False),
        pa.field("answer", pa.string()),
        pa.field("num_tokens", pa.int32()),
        pa.field("seconds", pa.float64()),
        pa.field("error", pa.string()),
    ]
)
_METADATA = b"warren.answers"
_FORMAT = 1
_SHOWN = 3


@dataclass(frozen=True)
class StoredAnswer:
    """What became of one question.

    Attributes:
        key: The question's id, unique in the file.
        question: Its text as it was sent.
        answer: What the model wrote, without white space around it; None where the request failed.
        num_tokens: Tokens of the answer, None where unknown.
        seconds: From sending to the last token, None where unknown. A file that Warren asked has none, so that
            the same answers are the same bytes; the pieces have them.
        error: Why the request failed; None where it did not.
    """

    key: str
    question: str
    answer: str | None = None
    num_tokens: int | None = None
    seconds: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class AnswersOrigin:
    """What a file of answers is of.

    Attributes:
        benchmark: The benchmark's name.
        split: Which of its splits was asked.
        prompts: The convention whose prompts were sent.
        model: The model that answered, as `run at step N`, a release or an endpoint's model name.
        digests: What identifies model, data and prompts, by name.
        versions: Packages that took part, by name.
    """

    benchmark: str = ""
    split: str = ""
    prompts: str = ""
    model: str = ""
    digests: Mapping[str, str] | None = None
    versions: Mapping[str, str] | None = None


def write_answers(location: Location, answers: Iterable[StoredAnswer], origin: AnswersOrigin) -> None:
    """Write answers; the same answers give the same bytes.

    Raises:
        DataError: A key occurs twice, or a row has both or neither of answer and error.
    """
    rows = list(answers)
    _check(rows, str(location))
    metadata = {_METADATA: json.dumps({"format": _FORMAT, **asdict(origin)}, sort_keys=True).encode()}
    table = pa.Table.from_pylist([asdict(row) for row in rows], schema=SCHEMA.with_metadata(metadata))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    location.put_bytes(sink.getvalue().to_pybytes())


def read_stored(location: Location) -> tuple[list[StoredAnswer], AnswersOrigin]:
    """Read a file that `write_answers` wrote.

    Raises:
        DataError: It is another kind of file, or is damaged.
    """
    try:
        table = read_parquet(pa.BufferReader(location.read_bytes()), str(location))
        missing = [name for name in ("key", "question", "answer", "error") if name not in table.column_names]
        if missing:
            columns = ", ".join(table.column_names)
            raise DataError(f"{location}: answers need columns {', '.join(SCHEMA.names)}; found {columns}")
        known = table.select([name for name in SCHEMA.names if name in table.column_names])
        rows = [StoredAnswer(**row) for row in known.to_pylist()]
        about = json.loads((table.schema.metadata or {}).get(_METADATA, b"{}"))
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise DataError(f"{location}: not a readable Parquet file of answers: {error}") from None
    if about.pop("format", _FORMAT) != _FORMAT:
        raise DataError(f"{location}: answers of a newer version of Warren; read them with that version")
    _check(rows, str(location))
    return rows, AnswersOrigin(**about)


def load_answers(location: Location) -> tuple[Answers, int, AnswersOrigin]:
    """Read answers for scoring: Warren's Parquet, or JSON lines made elsewhere.

    Returns:
        The answers, the number of lines that are not JSON, and what the file is of.

    Raises:
        DataError: The file cannot be used.
    """
    # Files made elsewhere record nothing of their origin, so nothing is checked against it.
    if not location.name.endswith(".parquet"):
        rows, num_broken = read_answers(location)
        return Answers(_numbered(rows)), num_broken, AnswersOrigin()
    stored, origin = read_stored(location)
    answers = Answers(
        Answer(row.key, row.answer, row.question, {"text": row.answer}) for row in stored if row.answer is not None
    )
    # Failed questions are named, so that scoring can tell them from questions that nobody asked.
    answers.failed = frozenset(row.key for row in stored if row.answer is None)
    return answers, 0, origin


def _numbered(answers: list[Answer]) -> list[Answer]:
    """Give answers to different questions with one published id the keys that their questions have."""
    prompts: dict[str, list[str]] = defaultdict(list)
    numbered = []
    for answer in answers:
        known = prompts[answer.key]
        if answer.prompt not in known:
            known.append(answer.prompt)
        numbered.append(replace(answer, key=repeated_key(answer.key, known.index(answer.prompt) + 1)))
    return numbered


def _check(rows: list[StoredAnswer], where: str) -> None:
    keys = [row.key for row in rows]
    if len(set(keys)) != len(keys):
        twice = [key for key, count in Counter(keys).items() if count > 1]
        shown = ", ".join(repr(key) for key in twice[:_SHOWN])
        raise DataError(f"{where}: {len(twice)} questions are answered twice ({shown}); a key may occur once")
    unclear = [row.key for row in rows if (row.answer is None) == (row.error is None)]
    if unclear:
        raise DataError(f"{where}: question {unclear[0]!r} must have an answer or an error, and not both")
