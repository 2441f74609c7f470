"""Arithmetic on embeddings that several steps share: unit length, unusable rows, cosines."""

import numpy as np


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return rows of length 1 in float32; `vectors` must be finite and not zero."""
    single = np.ascontiguousarray(vectors, dtype=np.float32)
    norms = np.sqrt(np.einsum("ij,ij->i", single, single, dtype=np.float64)).astype(np.float32)
    return np.asarray(single / norms[:, None])


def unusable(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return masks of the rows that hold NaN or infinity, and of those of length zero."""
    single = vectors.astype(np.float32, copy=False)
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("ij,ij->i", single, single, dtype=np.float64)
    return ~np.isfinite(squares), squares == 0


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the cosine of each row of two matrices of unit rows, computed in float64."""
    return np.asarray(np.einsum("ij,ij->i", left, right, dtype=np.float64))
