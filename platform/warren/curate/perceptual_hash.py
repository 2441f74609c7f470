"""A perceptual hash: 64 bits that stay nearly the same when an image is scaled, re-encoded or turned grey.

The hash is pHash's: brightness is scaled to 32 × 32 pixels, and the signs of its 64 lowest frequencies (discrete cosine
transform) against their median are the bits. Altered copies differ in a few bits, other images in about half of them.
"""

from itertools import pairwise

import numpy as np
from PIL import Image

_SIDE = 32
_FREQUENCIES = 8


def frequency_transform() -> np.ndarray:
    """Return the rows of a discrete cosine transform (DCT-II) that are of the lowest frequencies, [8, 32]."""
    places = np.arange(_SIDE)
    return np.asarray(np.cos(np.pi / _SIDE * (places[None, :] + 0.5) * np.arange(_FREQUENCIES)[:, None]))


_DCT = frequency_transform()


def perceptual_hash(image: Image.Image) -> int:
    """Return the 64 bits of an image."""
    grey = np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), np.float64)
    return int(hashes_of_frequencies(_DCT @ grey @ _DCT.T))


def hashes_of_frequencies(frequencies: np.ndarray) -> np.ndarray:
    """Return the hashes of images by their lowest frequencies.

    Args:
        frequencies: [..., 8, 8]; of one image, or of many.
    """
    flat = frequencies.reshape(*frequencies.shape[:-2], _FREQUENCIES**2)
    bits = flat > np.median(flat[..., 1:], axis=-1, keepdims=True)
    bits[..., 0] = False  # the mean brightness says nothing of what is shown
    return np.asarray(np.packbits(bits, axis=-1).view(">u8")[..., 0].astype(np.uint64))


def distance(left: np.ndarray, right: np.ndarray | np.uint64) -> np.ndarray:
    """Return the number of bits in which hashes differ."""
    return np.asarray(np.bitwise_count(left ^ right))


def linked(hashes: np.ndarray, max_distance: int) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of places whose hashes differ in at most `max_distance` bits.

    Hashes that differ in d bits are equal in at least one of d + 1 parts of their bits; so only hashes that share
    a part are compared, and no pair is missed.
    """
    parts = max_distance + 1
    edges = [64 * n // parts for n in range(parts + 1)]
    left, right = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for start, stop in pairwise(edges):
        mask = np.uint64((1 << stop - start) - 1)
        value = hashes >> np.uint64(start) & mask
        order = np.argsort(value, kind="stable")
        bounds = np.flatnonzero(np.r_[True, np.diff(value[order]) != 0, True])
        for first, end in pairwise(bounds.tolist()):
            # Each with those behind it, so that every pair is compared once.
            for place in range(first, end - 1):
                near = distance(hashes[order[place]], hashes[order[place + 1 : end]]) <= max_distance
                right.append(order[place + 1 : end][near])
                left.append(np.full(len(right[-1]), order[place]))
    return np.concatenate(left), np.concatenate(right)
