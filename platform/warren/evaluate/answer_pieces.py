"""Answers while a benchmark is being asked: pieces of consecutive questions, each stored once and never asked again.

pieces/00000000-00000128.1.parquet    what became of questions 0 … 127
pieces/00000000-00000128.2.parquet    the same of those that failed for a passing reason and were asked again later
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import chain, islice

import pyarrow as pa
import pyarrow.parquet as pq

from warren.errors import ConflictError, DataError, NotFoundError
from warren.evaluate.answer_file import SCHEMA, StoredAnswer
from warren.evaluate.benchmarks import Question
from warren.storage import Location
from warren.storage.parquet import read_parquet

_FOLDER = "pieces"
_METADATA = b"warren.piece"
_NAME = re.compile(r"(\d{8,}-\d{8,})\.(\d+)\.parquet")
_IO_THREADS = 16
_PIECE_SCHEMA = pa.schema([*SCHEMA, pa.field("images", pa.string()), pa.field("is_transient", pa.bool_())])


@dataclass(frozen=True)
class Outcome:
    """The outcome of one question: its answer or its error, and what only its piece records.

    Attributes:
        answer: The answer or the error.
        images: Digest of its encoded images; empty where it has none or they could not be read.
        is_transient: Whether it failed for a reason that may pass, such as a busy server. A later attempt asks it
            again.
    """

    answer: StoredAnswer
    images: str = ""
    is_transient: bool = False


@dataclass(frozen=True)
class QuestionPiece:
    """Questions that are asked together, and stored together once all have an outcome.

    Attributes:
        start: Place of the range's first question in the benchmark; `stop` is the place behind its last one.
        number: Counts the times that questions of this range were asked, from 1.
        questions: All of the range, or those that are to be asked again.
    """

    start: int
    stop: int
    number: int
    questions: tuple[Question, ...]

    @property
    def name(self) -> str:
        """The file's name."""
        return f"{self.start:08d}-{self.stop:08d}.{self.number}.parquet"


@dataclass(frozen=True)
class PieceEffort:
    """What one piece cost.

    Attributes:
        num_asked: Requests that a model or an endpoint got, without their repetitions.
        seconds: How long the piece took.
        attempt: The start of the job that asked it.
    """

    num_asked: int
    seconds: float
    attempt: str = ""


@dataclass(frozen=True)
class StoredPieces:
    """What is stored: the newest outcome of each question by its key, and what each piece cost."""

    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    efforts: Sequence[PieceEffort] = ()


@dataclass(frozen=True)
class AnswerPieces:
    """The pieces of one run of a benchmark, below its folder."""

    folder: Location

    def remaining(self, questions: Iterable[Question], size: int) -> Iterator[QuestionPiece]:
        """Yield what is to be asked: all that has no outcome, and what failed for a reason that may have passed.

        Args:
            questions: All of the benchmark, in their order.
            size: Questions of a piece. It must be the same for every attempt.
        """
        outcomes = self.read().outcomes
        numbers = self._numbers()
        everything, start = iter(questions), 0
        while batch := tuple(islice(everything, size)):
            stop = start + len(batch)
            unanswered = tuple(each for each in batch if _is_open(outcomes.get(each.key)))
            # The range keeps its name although only some of its questions are asked again.
            if unanswered:
                yield QuestionPiece(start, stop, numbers.get(f"{start:08d}-{stop:08d}", 0) + 1, unanswered)
            start = stop

    def is_stored(self, piece: QuestionPiece) -> bool:
        """Tell whether somebody has asked this piece."""
        file = self.folder / _FOLDER / piece.name
        try:
            return file.store.size(file.key) > 0
        except NotFoundError:
            return False

    def write(self, piece: QuestionPiece, outcomes: Sequence[Outcome], effort: PieceEffort) -> None:
        """Store a piece; if another process has stored it meanwhile, that one stays."""
        rows = [
            {name: _storable(value) for name, value in asdict(each.answer).items()}
            | {"images": each.images, "is_transient": each.is_transient}
            for each in outcomes
        ]
        metadata = {_METADATA: json.dumps(asdict(effort), sort_keys=True).encode()}
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows, schema=_PIECE_SCHEMA.with_metadata(metadata)), sink)
        # An attempt that was thought dead may have been first; its answers are as good.
        with suppress(ConflictError):
            (self.folder / _FOLDER / piece.name).create_bytes(sink.getvalue().to_pybytes())

    def read(self) -> StoredPieces:
        """Read every piece.

        Raises:
            DataError: One is damaged.
        """
        with ThreadPoolExecutor(_IO_THREADS) as pool:
            pieces = list(pool.map(lambda entry: _read(entry[-1]), sorted(self._files(), key=lambda each: each[:2])))
        # Sorted by range and number, so the newest outcome of a question replaces the older ones.
        outcomes = {each.answer.key: each for each in chain.from_iterable(rows for rows, _ in pieces)}
        return StoredPieces(outcomes, [effort for _, effort in pieces])

    def _files(self) -> list[tuple[str, int, Location]]:
        """Return the range, number and file of every piece."""
        files = (self.folder / _FOLDER).list()
        named = [(match, file) for file in files if (match := _NAME.fullmatch(file.name))]
        return [(match[1], int(match[2]), file) for match, file in named]

    def _numbers(self) -> dict[str, int]:
        """Return the highest number of each range."""
        return {place: number for place, number, _ in sorted(self._files(), key=lambda entry: entry[:2])}


def _storable(value: object) -> object:
    """Replace what UTF-8 cannot hold: half a surrogate pair in a question or in an endpoint's JSON."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _is_open(outcome: Outcome | None) -> bool:
    return outcome is None or outcome.is_transient


def _read(file: Location) -> tuple[list[Outcome], PieceEffort]:
    try:
        table = read_parquet(pa.BufferReader(file.read_bytes()), str(file))
        effort = PieceEffort(**json.loads((table.schema.metadata or {})[_METADATA]))
        outcomes = []
        for row in table.to_pylist():
            images, is_transient = row.pop("images"), row.pop("is_transient")
            outcomes.append(Outcome(StoredAnswer(**row), images, is_transient))
    except (pa.ArrowException, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{file} is damaged: {error}; delete it, and its questions are asked again") from None
    return outcomes, effort
