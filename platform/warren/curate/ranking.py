"""Exact rank bands over scores in many files, without sorting all scores and without ties.

Samples are ordered by score, the highest first, and at equal scores by row, the lowest first. Both fit into one 64-bit
key, so no two keys are equal. Each file holds its keys sorted, and every 1,024th of them again as a fence. The fences
show between which two of them a rank lies, and only the keys between those two are read.
"""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from warren.curate.array_files import ArrayFile, Arrays

_FENCE = 1024


def rank_keys(scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return 64-bit keys that order by score, descending, then by row.

    Args:
        scores: float32; none is NaN.
        rows: Below 2^32.
    """
    bits = (scores.astype(np.float32) + np.float32(0)).view(np.uint32)  # adding zero makes -0.0 equal to 0.0
    # IEEE 754: with the sign bit turned, and negative numbers inverted, floats sort as unsigned integers do.
    ascending = np.where(bits >> 31 == 1, ~bits, bits | np.uint32(0x80000000))
    return (~ascending).astype(np.uint64) << np.uint64(32) | rows.astype(np.uint64)


def rows_of(keys: np.ndarray) -> np.ndarray:
    """Return the rows of keys."""
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.int64)


def scores_of(keys: np.ndarray) -> np.ndarray:
    """Return the scores of keys."""
    ascending = ~(keys >> np.uint64(32)).astype(np.uint32)
    bits = np.where(ascending >> 31 == 1, ascending & np.uint32(0x7FFFFFFF), ~ascending)
    return bits.astype(np.uint32).view(np.float32)


def sorted_keys(scores: np.ndarray, rows: np.ndarray) -> Arrays:
    """Return the arrays of a file of keys."""
    keys = np.sort(rank_keys(scores, rows))
    return {"keys": keys, "fences": keys[::_FENCE]}


def band_ranks(band: tuple[float, float], count: int) -> tuple[int, int]:
    """Return the first rank of a band and the one after its last: floor(low · n) and floor(high · n), exactly."""
    # As the decimal that a person wrote: the double nearest to 0.7 is a little below it, and floor would show that.
    low, high = (Fraction(str(value)) * count for value in band)
    return int(low), int(high)


def keys_in_ranks(files: Sequence[ArrayFile], first: int, end: int) -> list[np.ndarray]:
    """Return for each file the keys that have the ranks `first` to `end - 1` among the keys of all files."""
    fences = [file.read("fences") for file in files]
    counts = [file.rows("keys") for file in files]
    low = _places(files, fences, counts, first)
    high = _places(files, fences, counts, end)
    return [file.read("keys", a, b) for file, a, b in zip(files, low, high, strict=True)]


def _places(files: Sequence[ArrayFile], fences: list[np.ndarray], counts: list[int], rank: int) -> list[int]:
    """Return for each file how many of its keys are below the key of a rank."""
    if rank <= 0:
        return [0] * len(files)
    if rank >= sum(counts):
        return list(counts)
    low, high = _bracket(np.sort(np.concatenate(fences)), fences, counts, rank)
    starts, parts = [], []
    for file, fence, count in zip(files, fences, counts, strict=True):
        # One fence earlier, because keys just below `low` may stand between that fence and this one.
        start = max(0, int(np.searchsorted(fence, low)) - 1) * _FENCE
        stop = count if high is None else min(count, int(np.searchsorted(fence, high)) * _FENCE)
        starts.append(start)
        parts.append(file.read("keys", start, stop))
    # Of the keys before `starts` all are lower, so the rank moves down by their number.
    key = np.partition(np.concatenate(parts), rank - sum(starts))[rank - sum(starts)]
    return [start + int(np.searchsorted(part, key)) for start, part in zip(starts, parts, strict=True)]


def _bracket(
    every: np.ndarray, fences: list[np.ndarray], counts: list[int], rank: int
) -> tuple[np.uint64, np.uint64 | None]:
    """Return a fence that is not above the key of a rank, and one that is above it, or None."""
    low, high = 0, len(every)
    while low < high:  # the first fence that may be above the key
        middle = (low + high) // 2
        if _most_below(fences, counts, every[middle]) <= rank:
            low = middle + 1
        else:
            high = middle
    below = every[max(low - 1, 0)]
    low, high = 0, len(every)
    while low < high:  # the first fence that must be above the key
        middle = (low + high) // 2
        if _fewest_below(fences, every[middle]) <= rank:
            low = middle + 1
        else:
            high = middle
    return below, every[low] if low < len(every) else None


def _most_below(fences: list[np.ndarray], counts: list[int], key: np.uint64) -> int:
    return sum(min(n, int(np.searchsorted(f, key)) * _FENCE) for f, n in zip(fences, counts, strict=True))


def _fewest_below(fences: list[np.ndarray], key: np.uint64) -> int:
    places = [int(np.searchsorted(fence, key)) for fence in fences]
    return sum((place - 1) * _FENCE + 1 for place in places if place)
