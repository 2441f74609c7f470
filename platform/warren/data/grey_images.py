"""Grey images of more than 8 bits, as scanners, microscopes and depth cameras write them, scaled to 8 bits.

Pillow's own conversion clips: every value above 255 would become white. Formats rarely say how many bits are used, so
the values decide: the scale is the smallest of 8, 12 and 16 bits that holds the largest value, unless a TIFF states its
bits.
"""

import numpy as np
from PIL import Image

from warren.errors import BadSampleError

DEEP_MODES = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N", "F"})
"""Pillow's modes of one channel with more than 8 bits."""

_DEPTHS = (8, 12, 16)
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # TIFF 6.0, section 8
_WHITE_IS_ZERO = 0


def to_8_bits(image: Image.Image) -> Image.Image:
    """Scale a loaded grey image to mode `L`.

    Integers from 0 to 65,535 are scaled by the depth they need. Floats from 0 to 1 become 0 to 255; floats from 0 to
    255 are taken as they are.

    Raises:
        BadSampleError: Values are outside these ranges, so their scale is unknown.
    """
    values = np.asarray(image)
    if values.size == 0 or not np.isfinite(values).all():
        raise BadSampleError("the image has values that are no numbers; convert it to 8 bits")
    low, high = values.min(), values.max()
    top = _top(image, float(high))
    if low < 0 or top is None:
        raise BadSampleError(
            f"the image has {_kind(image)} values from {low:g} to {high:g}; 0 to 65535, or 0 to 1 as floats, can be "
            "scaled: convert it to 8 bits"
        )
    if image.mode == "F":
        scaled = np.rint(values * np.float32(255.0 / top)).astype(np.uint8)
    else:
        scaled = np.rint(np.arange(int(top) + 1) * (255.0 / top)).astype(np.uint8)[values]
    return Image.fromarray(255 - scaled if _is_inverted(image) else scaled)


def _top(image: Image.Image, high: float) -> float | None:
    """Return the value that stands for white; None if there is none."""
    if image.mode == "F":
        return 1.0 if high <= 1 else 255.0 if high <= 255 else None
    named = _tag(image, _BITS_PER_SAMPLE)
    depths = (named,) if named in (10, 12, 14) else _DEPTHS
    return next((float(2**depth - 1) for depth in depths if high < 2**depth), None)


def _is_inverted(image: Image.Image) -> bool:
    return _tag(image, _PHOTOMETRIC) == _WHITE_IS_ZERO and image.mode != "F"


def _tag(image: Image.Image, number: int) -> int | None:
    """Return a number that a TIFF states about itself."""
    entry = getattr(image, "tag_v2", {}).get(number)
    value = entry[0] if isinstance(entry, tuple) and entry else entry
    return value if isinstance(value, int) else None


def _kind(image: Image.Image) -> str:
    return "float" if image.mode == "F" else "integer"
