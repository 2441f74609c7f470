"""Random samples as a pure function of seed and row, however the rows are cut into pieces."""

import numpy as np

from warren.curate.row_mask import RowSet


def row_hash(rows: np.ndarray, seed: int) -> np.ndarray:
    """Return 64 random bits for each row: SplitMix64 (Steele et al., 2014) of row and seed."""
    with np.errstate(over="ignore"):
        value = rows.astype(np.uint64) + np.uint64(seed + 1) * np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            value = (value ^ (value >> np.uint64(shift))) * np.uint64(factor)
        return value ^ (value >> np.uint64(31))


def sample(selected: RowSet, count: int, seed: int) -> RowSet:
    """Return the `count` rows of a set with the lowest hashes, or all rows of a smaller set."""
    rows, hashes = np.empty(0, np.int64), np.empty(0, np.uint64)
    for block in selected.blocks():
        rows, hashes = np.concatenate([rows, block]), np.concatenate([hashes, row_hash(block, seed)])
        # Cut after each block, so that memory is bounded by a block and the sample.
        if len(rows) > count:
            best = np.lexsort((rows, hashes))[:count]
            rows, hashes = rows[best], hashes[best]
    kept = RowSet.empty(selected.num_rows)
    kept.add(rows)
    return kept


def lowest_of_each(cluster: np.ndarray, rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return a mask of the `count` members of each cluster with the lowest hashes."""
    order = np.lexsort((rows, row_hash(rows, seed), cluster))
    starts = np.flatnonzero(np.r_[True, np.diff(cluster[order]) != 0]) if len(order) else np.empty(0, np.int64)
    place = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    mask = np.zeros(len(order), bool)
    mask[order[place < count]] = True
    return mask
