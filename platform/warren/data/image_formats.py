"""The formats of images that are decoded: all of Pillow's, but those that it hands to another program."""

import io
from functools import cache

from PIL import Image

_BY_PROGRAMS = ("EPS", "WMF")  # Ghostscript runs PostScript, which is code; Windows draws metafiles


def open_image(data: bytes, formats: tuple[str, ...] | None = None) -> Image.Image:
    """Open an encoded image, without decoding it.

    Args:
        data: The encoded image.
        formats: Formats that it may have, in Pillow's names; None for all.

    Raises:
        UnidentifiedImageError: It has none of them.
    """
    return Image.open(io.BytesIO(data), formats=formats or _decoded_here())


@cache
def _decoded_here() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in Image.ID if name not in _BY_PROGRAMS)
