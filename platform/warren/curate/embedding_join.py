"""The join of embeddings and samples by key, one bucket of keys in memory at a time.

Samples and embeddings are sorted into buckets by a 128-bit hash of their keys. One task joins each bucket. Its result
is sorted by the embeddings' places, so that each piece of the embeddings can read its own rows from it.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from warren.curate.array_files import ArrayFile, Arrays
from warren.curate.embeddings import EmbeddingPiece
from warren.curate.sample_pieces import PieceTask, SamplePiece, key_of
from warren.curate.tasks import NumberedTask, Runner, Workspace, finish
from warren.errors import DataError
from warren.storage import Location

NO_ROW = np.uint32(2**32 - 1)
_ROW_BYTES = 128  # memory of one key in a task, sorting included


def place(
    run: Runner,
    work: Workspace,
    samples: Sequence[SamplePiece],
    embeddings: Sequence[EmbeddingPiece],
    memory_bytes: int,
    unmatched: str,
) -> list[ArrayFile]:
    """Return for each piece of embeddings a file with `row`: the sample of each embedding, or `NO_ROW`.

    Args:
        unmatched: `error` or `drop`.

    Raises:
        DataError: Keys repeat, or are only on one side; the message counts them and names one.
    """
    count = samples[-1].stop + embeddings[-1].first + embeddings[-1].count
    buckets = max(1, -(-count * _ROW_BYTES // memory_bytes))
    left = finish(run, work / "samples", [_SampleKeys(piece, buckets) for piece in samples])
    right = finish(run, work / "embeddings", [_EmbeddingKeys(n, piece, buckets) for n, piece in enumerate(embeddings)])
    sides = [tuple(file.location for file in side) for side in (left, right)]
    firsts = tuple(piece.first for piece in embeddings)
    joined = finish(run, work / "buckets", [_Join(n, sides[0], sides[1], firsts) for n in range(buckets)])
    _check(joined, samples, embeddings, unmatched)
    files = tuple(file.location for file in joined)
    return finish(run, work / "rows", [_Rows(n, piece.first, piece.count, files) for n, piece in enumerate(embeddings)])


def _hashes(keys: Iterable[str]) -> np.ndarray:
    """Return 128 bits of each key's hash, as two numbers."""
    data = b"".join(hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=16).digest() for key in keys)
    return np.frombuffer(data, "<u8").reshape(-1, 2)


def _in_buckets(hashes: np.ndarray, places: np.ndarray, buckets: int) -> Arrays:
    bucket = hashes[:, 0] % np.uint64(buckets)
    order = np.argsort(bucket, kind="stable")
    starts = np.searchsorted(bucket[order], np.arange(buckets + 1))
    return {"hash": hashes[order], "place": places[order], "starts": starts}


@dataclass(frozen=True)
class _SampleKeys(PieceTask):
    buckets: int

    def compute(self) -> Arrays:
        keys = (key for _, table in self.piece.tables(["key"]) for key in table["key"].to_pylist())
        return _in_buckets(_hashes(keys), np.arange(self.piece.first, self.piece.stop), self.buckets)


@dataclass(frozen=True)
class _EmbeddingKeys(NumberedTask):
    piece: EmbeddingPiece
    buckets: int

    def compute(self) -> Arrays:
        places = np.arange(self.piece.first, self.piece.first + self.piece.count)
        return _in_buckets(_hashes(self.piece.keys()), places, self.buckets)


@dataclass(frozen=True)
class _Join(NumberedTask):
    samples: tuple[Location, ...]
    embeddings: tuple[Location, ...]
    firsts: tuple[int, ...]

    def compute(self) -> Arrays:
        (left, rows), (right, places) = self._sorted(self.samples), self._sorted(self.embeddings)
        # Both sides are sorted by hash, so equal keys are neighbours.
        same_left = np.flatnonzero((left[1:] == left[:-1]).all(axis=1)) + 1
        same_right = np.flatnonzero((right[1:] == right[:-1]).all(axis=1)) + 1
        # Both sides are sorted together: where a key is on both, the sample comes directly before the embedding.
        every = np.concatenate([left, right])
        order = np.lexsort((np.arange(len(every)), every[:, 1], every[:, 0]))
        follows = (every[order[1:]] == every[order[:-1]]).all(axis=1)
        pair = np.flatnonzero(follows & (order[:-1] < len(left)) & (order[1:] >= len(left)))
        pair_left, pair_right = order[pair], order[pair + 1] - len(left)
        by_place = np.argsort(places[pair_right], kind="stable")
        matched_places = places[pair_right][by_place]
        # Repeated keys are reported as such, not as missing on the other side.
        lonely_left = np.setdiff1d(np.arange(len(left)), np.r_[pair_left, same_left], assume_unique=False)
        lonely_right = np.setdiff1d(np.arange(len(right)), np.r_[pair_right, same_right], assume_unique=False)
        return {
            "place": matched_places,
            "row": rows[pair_left][by_place].astype(np.uint32),
            "starts": np.searchsorted(matched_places, np.r_[self.firsts, np.iinfo(np.int64).max]),
            "repeated_samples": rows[same_left],
            "repeated_embeddings": places[same_right],
            "lonely_samples": rows[lonely_left],
            "lonely_embeddings": places[lonely_right],
        }

    def _sorted(self, files: tuple[Location, ...]) -> tuple[np.ndarray, np.ndarray]:
        parts = []
        for location in files:
            file = ArrayFile(location)
            start, stop = file.read("starts", self.number, self.number + 2).tolist()
            parts.append((file.read("hash", start, stop), file.read("place", start, stop)))
        hashes, places = (np.concatenate([part[n] for part in parts]) for n in (0, 1))
        order = np.lexsort((places, hashes[:, 1], hashes[:, 0]))
        return hashes[order], places[order]


@dataclass(frozen=True)
class _Rows(NumberedTask):
    first: int
    count: int
    buckets: tuple[Location, ...]

    def compute(self) -> Arrays:
        row = np.full(self.count, NO_ROW)
        for location in self.buckets:
            file = ArrayFile(location)
            start, stop = file.read("starts", self.number, self.number + 2).tolist()
            row[file.read("place", start, stop) - self.first] = file.read("row", start, stop)
        return {"row": row}


def _check(
    joined: list[ArrayFile], samples: Sequence[SamplePiece], embeddings: Sequence[EmbeddingPiece], unmatched: str
) -> None:
    def embedding_key(place: int) -> str:
        piece = next(piece for piece in reversed(embeddings) if piece.first <= place)
        return piece.keys()[place - piece.first]

    kinds: list[tuple[str, str, Callable[[int], str]]] = [
        ("repeated_samples", "keys of the datasets repeat", lambda row: key_of(samples, row)),
        ("repeated_embeddings", "keys of the embeddings repeat", embedding_key),
    ]
    if unmatched == "error":
        kinds += [
            ("lonely_samples", "samples have no embedding", lambda row: key_of(samples, row)),
            ("lonely_embeddings", "embeddings are of no sample", embedding_key),
        ]
    problems = []
    for name, text, key in kinds:
        count = sum(file.rows(name) for file in joined)
        if count:
            first = next(file for file in joined if file.rows(name)).read(name, 0, 1)
            problems.append(f"{count} {text} (such as {key(int(first[0]))!r})")
    if problems:
        advice = (
            "" if problems[0].split(" ", 1)[1].startswith("keys") else "; embeddings.unmatched: drop leaves them out"
        )
        raise DataError(f"embeddings and datasets do not match by key: {', '.join(problems)}{advice}")
