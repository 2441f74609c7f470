"""SemDeDup (arXiv 2303.09540): drop each sample that is close to a sample before it in the cluster's order."""

import numpy as np

from warren.curate.embedding_duplicates import BLOCK


def order_of(cosine: np.ndarray, rows: np.ndarray, first: str) -> np.ndarray:
    """Return each sample's place in its cluster's order; where cosines are equal, the lower row comes first.

    Args:
        cosine: To the centroid.
        first: `farthest` or `nearest`.
    """
    place = np.empty(len(rows), np.int64)
    place[np.lexsort((rows, cosine if first == "farthest" else -cosine))] = np.arange(len(rows))
    return place


def close_to_earlier(
    left: np.ndarray, left_order: np.ndarray, right: np.ndarray, right_order: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return masks of the rows of two matrices that are close to an earlier row of the other matrix.

    A matrix may be compared with itself: a row does not come before itself.
    """
    out_left, out_right = np.zeros(len(left), bool), np.zeros(len(right), bool)
    for a in range(0, len(left), BLOCK):
        rows = slice(a, a + BLOCK)
        for b in range(0, len(right), BLOCK):
            columns = slice(b, b + BLOCK)
            above = left[rows] @ right[columns].T > threshold
            out_right[columns] |= (above & (left_order[rows, None] < right_order[None, columns])).any(axis=0)
            out_left[rows] |= (above & (left_order[rows, None] > right_order[None, columns])).any(axis=1)
    return out_left, out_right
