"""Questions of evaluation sets among training conversations: found by runs of words that both have.

The runs of a question are all sequences of some consecutive words in a line of it. Runs that many questions share, such
as "answer with a single word or phrase", say nothing and are left out. A conversation contains a question if it has at
least half of the question's other runs, in any turn.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from warren.curate.array_files import ArrayFile, Arrays
from warren.curate.sample_pieces import PieceTask
from warren.curate.tasks import Runner, Workspace, finish
from warren.data.sample import IMAGE_MARK
from warren.storage import Location

MIN_SHARE = 0.5
"""Share of a question's runs that a conversation must have."""
_COMMON = 10  # questions that share a run; a run of more questions is left out
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class HashQuestions(PieceTask):
    """The runs of an evaluation set's questions."""

    num_words: int

    def compute(self) -> Arrays:
        """Return the result."""
        rows, runs = [], []
        for row, record in self.piece.records(["turns"]):
            asked = runs_of(_lines(record["turns"]), self.num_words)
            rows.append(np.full(len(asked), row))
            runs.append(asked)
        return {"row": _joined(rows, np.int64), "run": _joined(runs, np.uint64)}


@dataclass(frozen=True)
class _Index:
    """All questions' runs, sorted, without common ones."""

    files: tuple[tuple[Location, ...], ...]

    @property
    def name(self) -> str:
        return "index"

    def compute(self) -> Arrays:
        parts = [(n, ArrayFile(location)) for n, locations in enumerate(self.files) for location in locations]
        run = _joined([file.read("run") for _, file in parts], np.uint64)
        row = _joined([file.read("row") for _, file in parts], np.int64)
        evaluation = _joined([np.full(file.rows("row"), n) for n, file in parts], np.int64)
        _, places, counts = np.unique(run, return_inverse=True, return_counts=True)
        # Counted over all evaluation sets together, because the prompts of benchmarks are alike.
        rare = counts[places] <= _COMMON
        order = np.lexsort((row[rare], evaluation[rare], run[rare]))
        # A question is an evaluation set and a row; `sizes` counts the runs by which it can be found.
        asked = np.stack([evaluation[rare][order], row[rare][order]], axis=1)
        questions, number, sizes = np.unique(asked, axis=0, return_inverse=True, return_counts=True)
        return {"run": run[rare][order], "question": number.ravel(), "questions": questions, "sizes": sizes}


def index_questions(run: Runner, work: Workspace, files: Sequence[Sequence[Location]]) -> ArrayFile:
    """Return the index of the questions of several evaluation sets.

    Args:
        files: Results of `HashQuestions` of each set.
    """
    return finish(run, work, [_Index(tuple(tuple(each) for each in files))])[0]


@dataclass(frozen=True)
class FindQuestions(PieceTask):
    """The samples of one piece that contain questions of an index."""

    index: Location
    selected: Location
    num_words: int

    def compute(self) -> Arrays:
        """Return the result."""
        index = _index_of(self.index)
        matches: list[tuple[int, int, int, float]] = []
        for row, record in self.piece.records(["turns"], self.selected):
            runs = runs_of((turn["text"] for turn in record["turns"]), self.num_words)
            if len(runs):
                matches += [(row, *match) for match in index.contained_in(runs)]
        columns: list[Sequence[Any]] = list(zip(*matches, strict=True)) if matches else [()] * 4
        names = ("row", "evaluation", "evaluation_row")
        made = {name: np.array(column, np.int64) for name, column in zip(names, columns[:3], strict=True)}
        return {**made, "share": np.array(columns[3], np.float64)}


def runs_of(texts: Iterable[str], num_words: int) -> np.ndarray:
    """Return 64 bits of the hash of each run of words in some texts, each once, sorted."""
    runs = set()
    for text in texts:
        words = _WORD.findall(text.replace(IMAGE_MARK, " ").lower())
        runs |= {" ".join(words[start : start + num_words]) for start in range(len(words) - num_words + 1)}
    data = b"".join(hashlib.blake2b(run.encode("utf-8", "replace"), digest_size=8).digest() for run in runs)
    return np.sort(np.frombuffer(data, "<u8"))


@dataclass(frozen=True)
class _Questions:
    """An index in memory.

    Attributes:
        run: Sorted; `question` has the number of the question of each.
        questions: Evaluation set and row of each question; `sizes` has the number of its runs.
    """

    run: np.ndarray
    question: np.ndarray
    questions: np.ndarray
    sizes: np.ndarray

    def contained_in(self, runs: np.ndarray) -> list[tuple[int, int, float]]:
        """Return evaluation set, row and share of runs of the questions that a conversation contains."""
        first, stop = np.searchsorted(self.run, runs, side="left"), np.searchsorted(self.run, runs, side="right")
        common = np.flatnonzero(first < stop)
        if not len(common):
            return []
        hit = np.concatenate([self.question[first[n] : stop[n]] for n in common])
        numbers, counts = np.unique(hit, return_counts=True)
        shares = (counts / self.sizes[numbers]).tolist()
        asked = self.questions[numbers].tolist()
        return [
            (int(evaluation), int(row), float(share))
            for (evaluation, row), share in zip(asked, shares, strict=True)
            if share >= MIN_SHARE
        ]


@lru_cache(maxsize=4)
def _index_of(location: Location) -> _Questions:
    file = ArrayFile(location)
    return _Questions(*(file.read(name) for name in ("run", "question", "questions", "sizes")))


def _lines(turns: Iterable[dict[str, str]]) -> Iterator[str]:
    """Yield the lines of what the user asks: no other conversation has runs of a question and a prompt behind it."""
    for turn in turns:
        if turn["role"] == "user":
            yield from turn["text"].splitlines()


def _joined(parts: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate(parts).astype(dtype) if parts else np.empty(0, dtype)
