"""How alike an image and a crop of another are: perceptual hash, correlation of brightness, a search for the best crop.

Scaling an image is a product with two matrices, one for each side. So are the low frequencies of a scaled image, and
all crops of a thumbnail are hashed by a few products: fifty times faster than cropping and scaling each.
"""

import itertools
from collections.abc import Iterator, Mapping
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from warren.curate.perceptual_hash import frequency_transform, hashes_of_frequencies

Box = tuple[float, float, float, float]
SCALES = {1.0: 1, 0.9: 3, 0.8: 4, 0.7: 5}
"""Crops of an evaluation image: side of the crop, as a fraction, and how many lie along each side."""
THUMBNAIL_PX = 128
_FINENESS = 4  # pixels of a thumbnail for one that is compared
_COMPARED_PX = 32  # of a side, in the last comparison
COARSE_PX, COARSE_SCALE = 8, 30
"""Of the few pixels that are compared first: their side, and the integer that a standard deviation is stored as."""
COLOURS_SHAPE = (2, _COMPARED_PX, _COMPARED_PX)
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
"""The crop that is the whole image."""
# The search for the crop that fits best: pixels of a side, moves as fractions of the image, how many, and how far
# below `min_correlation` it may stand after them. Few pixels lead to the crop from afar, many tell which one it is. Of
# 900 cropped images, half of them mirrored, none stood lower and was found in the end.
_SEARCH = (
    (8, 0.05, 3, 0.18),
    (8, 0.025, 2, 0.08),
    (16, 0.025, 2, 0.1),
    (16, 0.0125, 2, 0.05),
    (32, 0.0125, 2, 0.08),
    (32, 0.00625, 2, 0.03),
    (32, 0.003, 2, 0.0),
)
# What a move adds to the two edges of an axis, in steps: [sizes, places, 2].
_MOVES = np.array([[[at - size / 2, at + size / 2] for at in (-1, 0, 1)] for size in (-1, 0, 1)], np.float32)
_NO_COLOUR = 128
# Mean differences of Cb and Cr, of 255: of a grey image from grey, and of images that are no copies of each other.
_GREY, _OTHER_COLOUR = 3.0, 12.0
# Parts of an image that are compared one by one: their side, the variance that noise may have (of 1, that of the whole
# image), and the largest difference, of the part's own variance, that copies have.
_PART_PX, _PART_NOISE, _OTHER_PART = 8, 0.1, 0.35
_FLAT = 2.0  # standard deviation of brightness below which an image shows nothing that could be recognised


@lru_cache
def boxes() -> tuple[Box, ...]:
    """Return the crops that are hashed: left, top, right and bottom as fractions."""
    return tuple(_boxes())


def _boxes() -> Iterator[Box]:
    for side, along in SCALES.items():
        places = np.linspace(0, 1 - side, along)
        for left, top in itertools.product(places.tolist(), places.tolist()):
            yield left, top, left + side, top + side


Compared = Mapping[int, np.ndarray]
"""The normalised brightness of an image at 8, 16 and 32 pixels a side, by the side."""


def best_fit(shown: Compared, small: np.ndarray, box: Box, min_correlation: float) -> tuple[float, Box]:
    """Return the correlation of pixels with the crop of a thumbnail that fits best, and the crop, found near a box.

    The search ends where the correlation is too low to reach `min_correlation`.
    """
    edges, best = np.array(box, np.float32), 0.0
    for side, step, moves, may_lack in _SEARCH:
        best, edges = _climb(shown[side], _centred(small, side), edges, step, moves)
        if best < min_correlation - may_lack:
            break
    left, top, right, bottom = edges.tolist()
    return best, (left, top, right, bottom)


def _climb(
    shown: np.ndarray, pixels: np.ndarray, edges: np.ndarray, step: float, moves: int
) -> tuple[float, np.ndarray]:
    """Move a crop to where the correlation is highest, some times or until no move raises it."""
    best = float(_correlations(shown, pixels, edges[None, None, [0, 2]], edges[None, None, [1, 3]])[0, 0, 0])
    for _ in range(moves):
        across, down = (np.clip(edges[axis] + np.float32(step) * _MOVES, 0, 1) for axis in ([0, 2], [1, 3]))
        correlations = _correlations(shown, pixels, across, down)
        size, y, x = np.unravel_index(int(correlations.argmax()), correlations.shape)
        if correlations[size, y, x] <= best:
            break
        best = float(correlations[size, y, x])
        edges = np.array([across[size, x, 0], down[size, y, 0], across[size, x, 1], down[size, y, 1]])
    return best, edges


def _centred(small: np.ndarray, side: int) -> np.ndarray:
    """Return a thumbnail with four pixels for one of `side`, and mean 0, so that variances are exact in float32."""
    of_each = THUMBNAIL_PX // (_FINENESS * side)
    pixels = small.reshape(_FINENESS * side, of_each, _FINENESS * side, of_each).mean(axis=(1, 3), dtype=np.float32)
    return np.asarray(pixels - pixels.mean())


def _correlations(shown: np.ndarray, pixels: np.ndarray, across: np.ndarray, down: np.ndarray) -> np.ndarray:
    """Return the correlations of pixels with crops of a thumbnail, [sizes, tops, lefts].

    Args:
        shown: Normalised pixels, [side, side].
        across: Left and right edges as fractions, [sizes, lefts, 2].
        down: Top and bottom edges, [sizes, tops, 2].
    """
    crops = _crops(pixels, across, down, len(shown))
    flat = crops.reshape(*crops.shape[:3], shown.size)
    variances = np.einsum("...i,...i", flat, flat) / shown.size - flat.mean(axis=-1) ** 2
    spreads = np.sqrt(np.maximum(variances, 0))
    covariances = flat @ shown.ravel() / shown.size  # the mean of `shown` is 0
    return np.where(spreads < _FLAT, 0, covariances / np.maximum(spreads, _FLAT))


def _crops(pixels: np.ndarray, across: np.ndarray, down: np.ndarray, side: int) -> np.ndarray:
    """Return crops of a thumbnail at some pixels a side, [sizes, tops, lefts, side, side]."""
    rows = _bilinear(down, side) @ pixels
    return np.asarray(rows[:, :, None] @ _bilinear(across, side).swapaxes(-1, -2)[:, None])


def _bilinear(edges: np.ndarray, side: int) -> np.ndarray:
    """Return the weights that scale crops of a thumbnail to some pixels, [..., side, 4 · side]."""
    pixels = _FINENESS * side
    first, last = np.float32(pixels) * edges[..., :1], np.float32(pixels) * edges[..., 1:]
    scale = (last - first) / side
    centres = first + (np.arange(side, dtype=np.float32) + np.float32(0.5)) * scale
    weights = np.arange(0.5, pixels, dtype=np.float32) - centres[..., None]
    np.abs(weights, out=weights)
    weights /= -np.maximum(scale, 1)[..., None]
    weights += 1
    np.maximum(weights, 0, out=weights)
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights


def differs_in_a_part(shown: Compared, small: np.ndarray, box: Box) -> bool:
    """Tell whether a part of an image shows something else than a crop of a thumbnail, although the whole is alike.

    Of a copy every part is a copy. Faces that differ in the mouth, or flags that differ in the coat of arms, are none.
    Parts may be moved by a pixel, because the crop is not known better.
    """
    edges = np.array(box, np.float32)
    original = _crops(
        _centred(small, _COMPARED_PX), edges[None, None, [0, 2]], edges[None, None, [1, 3]], _COMPARED_PX
    )[0, 0, 0]
    original = (original - original.mean()) / max(float(original.std()), _FLAT)
    copy, around = shown[_COMPARED_PX], np.pad(original, 1, mode="edge")
    moved = [around[y : y + _COMPARED_PX, x : x + _COMPARED_PX] for y in range(3) for x in range(3)]
    differences = np.min([_parts((copy - each) ** 2).mean(axis=(-1, -2)) for each in moved], axis=0)
    variances = np.maximum(_parts(copy).var(axis=(-1, -2)), _parts(original).var(axis=(-1, -2)))
    return bool((differences / (variances + _PART_NOISE)).max() > _OTHER_PART)


def _parts(pixels: np.ndarray) -> np.ndarray:
    """Return overlapping squares of an image, [n, n, side, side]."""
    return sliding_window_view(pixels, (_PART_PX, _PART_PX))[:: _PART_PX // 2, :: _PART_PX // 2]


def _normalised(pixels: np.ndarray) -> np.ndarray | None:
    """Return brightness with mean 0 and standard deviation 1; None, if there is next to nothing to be seen."""
    values = pixels.astype(np.float64)
    spread = values.std()
    return None if spread < _FLAT else np.asarray((values - values.mean()) / spread, np.float32)


def compared_pixels(image: Image.Image) -> Compared | None:
    """Return the brightness that `best_fit` compares; None if there is next to nothing to be seen."""
    sides = {side for side, *_ in _SEARCH}
    scaled = {side: _normalised(np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))) for side in sides}
    pixels = {side: values for side, values in scaled.items() if values is not None}
    return pixels if len(pixels) == len(sides) else None


def colours(image: Image.Image) -> np.ndarray:
    """Return the two colour channels (Cb and Cr) of an image at 32 × 32 pixels, [2, 32, 32]."""
    small = image.convert("YCbCr").resize((_COMPARED_PX, _COMPARED_PX), Image.Resampling.BOX)
    return np.asarray(np.asarray(small).transpose(2, 0, 1)[1:])


def are_like_coloured(shown: np.ndarray, original: np.ndarray, box: Box) -> bool:
    """Tell whether an image has the colours of a crop of another; a grey image may be a copy of any.

    Args:
        shown: `colours` of the image.
        original: `colours` of the other.
    """
    left, top, right, bottom = (edge * _COMPARED_PX for edge in box)
    size = (COARSE_PX, COARSE_PX)
    differences: list[float] = []
    spreads: list[float] = []
    for channel, of_original in zip(shown, original, strict=True):
        copy = np.asarray(Image.fromarray(channel).resize(size, Image.Resampling.BOX), np.float64)
        crop = Image.fromarray(np.ascontiguousarray(of_original)).resize(
            size, Image.Resampling.BOX, (left, top, right, bottom)
        )
        differences.append(float(np.abs(copy - np.asarray(crop)).mean()))
        spreads.append(float(np.abs(copy - _NO_COLOUR).mean()))
    return max(spreads) < _GREY or max(differences) < _OTHER_COLOUR


def thumbnail(grey: Image.Image) -> np.ndarray:
    """Return an image's brightness at 128 × 128 pixels."""
    return np.asarray(grey.resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS))


def hashes_and_pixels(small: np.ndarray, crops: list[Box]) -> tuple[np.ndarray, np.ndarray]:
    """Return the perceptual hashes of a thumbnail's crops, [n], and their normalised 8 × 8 pixels, [n, 64].

    The pixels of a crop that shows next to nothing are zeros.
    """
    sides, left_right, top_bottom = _sides_of(tuple(crops))
    hashed, coarse = (_scaled(small, weights, left_right, top_bottom) for weights in sides)
    pixels = coarse.reshape(len(crops), COARSE_PX**2)
    pixels = pixels - pixels.mean(axis=1, keepdims=True)
    spread = pixels.std(axis=1, keepdims=True)
    return hashes_of_frequencies(hashed), np.where(spread < _FLAT, 0, pixels / np.maximum(spread, _FLAT))


def _scaled(small: np.ndarray, weights: np.ndarray, left_right: np.ndarray, top_bottom: np.ndarray) -> np.ndarray:
    """Apply the weights of each crop's sides to a thumbnail, [n, 8, 8]."""
    rows = weights @ small.astype(np.float64)
    return np.asarray(rows[top_bottom] @ weights[left_right].transpose(0, 2, 1))


@lru_cache
def _sides_of(crops: tuple[Box, ...]) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray, np.ndarray]:
    """Return the weights of hashes and of pixels for all different sides of crops, and which sides each crop has."""
    pixels = np.rint(np.array(crops) * THUMBNAIL_PX).astype(int)
    sides, numbers = np.unique(np.concatenate([pixels[:, [0, 2]], pixels[:, [1, 3]]]), axis=0, return_inverse=True)
    numbers = numbers.ravel()
    transform = frequency_transform()
    hashed = [transform @ _scaling(a, b, transform.shape[1], Image.Resampling.LANCZOS) for a, b in sides.tolist()]
    coarse = [_scaling(a, b, COARSE_PX, Image.Resampling.BOX) for a, b in sides.tolist()]
    return (np.stack(hashed), np.stack(coarse)), numbers[: len(crops)], numbers[len(crops) :]


def _scaling(start: int, stop: int, size: int, filter_: Image.Resampling) -> np.ndarray:
    """Return the weights with which Pillow scales pixels `start` to `stop - 1` of a thumbnail, [size, 128]."""
    rows = np.eye(THUMBNAIL_PX, dtype=np.float32)[start:stop]
    return np.asarray(Image.fromarray(rows).resize((THUMBNAIL_PX, size), filter_), np.float64)
