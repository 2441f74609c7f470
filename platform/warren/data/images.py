"""Encoded bytes to pixels: bounded, checked, and as the vision tower was trained to see them."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from warren.errors import BadSampleError

MAX_PIXELS = 64_000_000
"""Larger pictures are refused before they are decoded: a few bytes can claim gigapixels."""


@dataclass(frozen=True)
class ImageSpec:
    """How pictures become the vision tower's input.

    Attributes:
        size_px: Height and width of the result.
        mean: Per channel, of values in [0, 1].
        std: Per channel, of values in [0, 1].
        padding: Pad to a square with the mean colour first, as Bunny's stage 2 does; else aspect is not kept.
    """

    size_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    padding: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the value as JSON types."""
        return {
            "size_px": self.size_px,
            "mean": list(self.mean),
            "std": list(self.std),
            "padding": self.padding,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "ImageSpec":
        """Rebuild what `to_json` returned."""
        mean, std = (tuple(float(v) for v in value[key]) for key in ("mean", "std"))
        return cls(value["size_px"], mean, std, value["padding"])  # type: ignore[arg-type]


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a picture to RGB.

    Raises:
        BadSampleError: Empty, truncated, larger than `max_pixels`, or no picture at all.
    """
    if not data:
        raise BadSampleError("the image is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise BadSampleError(f"the image has {width}×{height} pixels; at most {max_pixels} are decoded")
            return image.convert("RGB")
    except UnidentifiedImageError:
        raise BadSampleError(f"{len(data)} bytes that are no known image format") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadSampleError(f"the image cannot be decoded: {error}") from None


def to_pixels(image: Image.Image, spec: ImageSpec) -> np.ndarray:
    """Resize an RGB picture for the vision tower.

    Returns:
        uint8 (3, size_px, size_px). Normalising happens on the training device: bytes travel four times lighter.
    """
    if spec.padding:
        image = _pad_to_square(image, spec.mean)
    if image.size != (spec.size_px, spec.size_px):
        image = image.resize((spec.size_px, spec.size_px), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))


def _pad_to_square(image: Image.Image, mean: tuple[float, float, float]) -> Image.Image:
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    canvas = Image.new("RGB", (side, side), tuple(int(channel * 255) for channel in mean))
    canvas.paste(image, ((side - width) // 2, (side - height) // 2))
    return canvas
