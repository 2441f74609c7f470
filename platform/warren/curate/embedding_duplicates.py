"""Near duplicates within a cluster: connected components of pairs whose cosine is above a threshold. One member stays.

This is Bunny's rule (arXiv 2402.11530; Dataset-Pruning, LAION/dedup.py): the member whose Euclidean distance to the
cluster's centroid is the median of its component, index n // 2 of the distances in ascending order. Where distances are
equal, the lower row comes first. Products are taken in blocks, so a cluster of n costs n² time, but never n² memory.
"""

from typing import Literal

import numpy as np

from warren.curate.array_files import Arrays

Keep = Literal["median", "nearest", "farthest"]
BLOCK = 2048  # rows of a product
GROUPS_SHOWN = 4  # groups that a report shows
_MEMBERS_SHOWN = 8  # rows of each


def links(left: np.ndarray, right: np.ndarray | None, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of rows with a cosine above a threshold: not all of them, but with the same connected components.

    Args:
        left: (n, width) unit rows.
        right: (m, width) unit rows to compare them with; None compares the rows of `left` with each other.

    Returns:
        The two members of each pair. Rows of `right` are numbered after those of `left`.
    """
    other, behind = (left, 0) if right is None else (right, len(left))
    parts = [(np.empty(0, np.int64), np.empty(0, np.int64))]
    for row in range(0, len(left), BLOCK):
        for column in range(row if right is None else 0, len(other), BLOCK):
            above = left[row : row + BLOCK] @ other[column : column + BLOCK].T > threshold
            places = np.flatnonzero(above)
            a, b = places // above.shape[1] + row, places % above.shape[1] + column + behind
            # The upper triangle only: the product of a block with itself has each pair twice, and each row with itself.
            if right is None and row == column:
                a, b = a[a < b], b[a < b]
            parts.append(_fewest(a, b))
    return np.concatenate([a for a, _ in parts]), np.concatenate([b for _, b in parts])


def _fewest(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return fewer pairs with the same connected components: for n equal images, n - 1 pairs instead of n²."""
    if len(a) <= BLOCK:
        return a, b
    rows, places = np.unique(np.concatenate([a, b]), return_inverse=True)
    label = components(len(rows), places[: len(a)], places[len(a) :])
    member = np.flatnonzero(label != np.arange(len(rows)))
    return rows[label[member]], rows[member]


def components(count: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return for each of `count` rows the lowest row of its connected component."""
    label = np.arange(count)
    while True:
        # Union-find in arrays: of two labels that a pair links, the higher one points to the lower one.
        low, high = np.minimum(label[left], label[right]), np.maximum(label[left], label[right])
        apart = low != high
        if not apart.any():
            return label
        np.minimum.at(label, high[apart], low[apart])
        # Paths are shortened until each label is the lowest row of its component so far.
        while not np.array_equal(label[label], label):
            label = label[label]


def largest(label: np.ndarray, rows: np.ndarray) -> Arrays:
    """Return the largest components, for a report.

    Returns:
        `sizes`, and `groups`: the first rows of each, padded with -1.
    """
    roots, sizes = np.unique(label, return_counts=True)
    order = np.lexsort((roots, -sizes))[:GROUPS_SHOWN]
    order = order[sizes[order] > 1]
    groups = np.full((len(order), _MEMBERS_SHOWN), -1, np.int64)
    for place, root in enumerate(roots[order]):
        members = rows[label == root][:_MEMBERS_SHOWN]
        groups[place, : len(members)] = members
    return {"groups": groups, "sizes": sizes[order]}


def chosen(label: np.ndarray, distance: np.ndarray, keep: Keep) -> np.ndarray:
    """Return the rows that stay, one of each component, in order.

    Args:
        label: Of `components`.
        distance: Of each row to the centroid.
    """
    order = np.lexsort((np.arange(len(label)), distance, label))
    starts = np.flatnonzero(np.r_[True, np.diff(label[order]) != 0]) if len(order) else np.empty(0, np.int64)
    sizes = np.diff(np.r_[starts, len(order)])
    place = {"median": sizes // 2, "nearest": 0 * sizes, "farthest": sizes - 1}[keep]
    return np.sort(order[starts + place])
