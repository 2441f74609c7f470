"""From encoded images to pixels: checked, limited in size, and prepared as the vision tower was trained."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image, UnidentifiedImageError

from warren.compat.pillow import lift_pixel_limit
from warren.data.grey_images import DEEP_MODES, to_8_bits
from warren.data.image_formats import open_image
from warren.errors import BadSampleError, ConfigError

lift_pixel_limit()  # every size is checked here before pixels are decoded

MAX_PIXELS = 64_000_000
"""Larger images of unknown origin are refused before they are decoded: a few bytes can claim gigapixels."""
MAX_SIDE_PX = 65_535
"""Longer images are refused, too: it is JPEG's limit, and the square around a longer line is gigapixels."""

MAX_JPEG_SCANS = 100
"""JPEGs with more are refused: encoders write about ten, and an empty scan takes as long to decode as a full one."""

_JPEG_START, _JPEG_SCAN = b"\xff\xd8\xff", b"\xff\xda"
# Of a run of fill bytes (0xff) only the last begins a match: tried from each of them, a run would take quadratic time.
_JPEG_SEGMENT = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])", re.DOTALL)

Resize = Literal["stretch", "crop", "crop_even"]
"""How an image that is no square is brought to one, always bicubic.

`stretch` ignores the aspect: SigLIP's processor. `crop` scales the shortest side and cuts the middle out; half of an
odd surplus is rounded down: transformers' CLIPImageProcessor. `crop_even` rounds it to the even number: torchvision's
CenterCrop, which EVA-CLIP's processor is made of.
"""


@dataclass(frozen=True)
class ImageSpec:
    """How images become the vision tower's input.

    Attributes:
        size_px: Height and width of the result.
        mean: Per channel, of values in [0, 1].
        std: Per channel, of values in [0, 1].
        padding: Pad to a square with the mean colour first, as Bunny's stage 2 does; `resize` then only scales.
        resize: What is done with an image that is no square.
    """

    size_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    padding: bool = False
    resize: Resize = "stretch"

    def __post_init__(self) -> None:
        if self.resize not in get_args(Resize):
            raise ConfigError(f"no way to resize named {self.resize!r}; valid: {', '.join(get_args(Resize))}")

    def to_json(self) -> dict[str, Any]:
        """Return the value as JSON types."""
        return {
            "size_px": self.size_px,
            "mean": list(self.mean),
            "std": list(self.std),
            "padding": self.padding,
            "resize": self.resize,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "ImageSpec":
        """Rebuild what `to_json` returned."""
        mean, std = (tuple(float(v) for v in value[key]) for key in ("mean", "std"))
        return cls(value["size_px"], mean, std, value["padding"], value.get("resize", "stretch"))  # type: ignore[arg-type]


def decode_image(
    data: bytes, max_pixels: int | None = MAX_PIXELS, formats: tuple[str, ...] | None = None
) -> Image.Image:
    """Decode an image to RGB as it is stored: alpha is dropped and EXIF orientation ignored, as Bunny was trained.

    Grey images of more than 8 bits are scaled to 8 bits (`warren.data.grey_images`).

    Args:
        data: The encoded image.
        max_pixels: Larger images are refused; None for those of a dataset, which ingest checked against its own limit.
        formats: Formats that it may have, in Pillow's names; None for those of `open_image`.

    Raises:
        BadSampleError: Empty, truncated, larger than `max_pixels`, longer than `MAX_SIDE_PX`, or no image at all.
    """
    if not data:
        raise BadSampleError("the image is empty (0 bytes)")
    _check_scans(data)
    try:
        with open_image(data, formats) as image:
            width, height = image.size
            if max_pixels is not None and width * height > max_pixels:
                raise BadSampleError(f"the image has {width}×{height} pixels; at most {max_pixels} are decoded")
            if max(width, height) > MAX_SIDE_PX:
                raise BadSampleError(f"the image is {width}×{height} pixels; a side may have {MAX_SIDE_PX}")
            image.info.pop("transparency", None)  # to be dropped anyway; palettes would warn of it
            image.load()
            if image.mode in DEEP_MODES:
                return to_8_bits(image).convert("RGB")
            return image if image.mode == "RGB" else image.convert("RGB")  # converting copies, also RGB to RGB
    except UnidentifiedImageError:
        raise BadSampleError(f"{len(data)} bytes that are no known image format") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadSampleError(f"the image cannot be decoded: {error}") from None


def _check_scans(data: bytes) -> None:
    """Refuse a JPEG of very many scans: decoding takes time in proportion to scans times pixels."""
    if data[:3] != _JPEG_START or data.count(_JPEG_SCAN) <= MAX_JPEG_SCANS:
        return
    # The two bytes also occur by chance, in thumbnails, and in what phones append. So go from segment to segment.
    num_scans = 0
    position = 2
    while (segment := _JPEG_SEGMENT.search(data, position)) and segment[1] != b"\xd9":
        num_scans += segment[1] == _JPEG_SCAN[1:]
        if num_scans > MAX_JPEG_SCANS:
            raise BadSampleError(f"the JPEG has more than {MAX_JPEG_SCANS} scans; save it anew")
        position = segment.end() + int.from_bytes(data[segment.end() : segment.end() + 2], "big")


def to_square(image: Image.Image, spec: ImageSpec) -> Image.Image:
    """Resize an RGB image of any size and aspect to `size_px` × `size_px`, as the vision tower sees it."""
    if spec.padding:
        return _scale(_pad_to_square(image, spec), (spec.size_px, spec.size_px))
    if spec.resize == "stretch":
        return _scale(image, (spec.size_px, spec.size_px))
    return _crop(image, spec)


def write_pixels(squares: Sequence[Image.Image], target: np.ndarray) -> None:
    """Write RGB images of one size as pixels, channels first.

    Band by band through Pillow: a third of the time that NumPy takes to turn interleaved channels around.

    Args:
        target: uint8 (num_images, 3, height, width), contiguous.
    """
    for square, place in zip(squares, target, strict=True):
        for channel, band in enumerate(square.getbands()):
            place[channel] = np.frombuffer(square.tobytes("raw", band), np.uint8).reshape(place.shape[1:])


def to_pixels(image: Image.Image, spec: ImageSpec) -> np.ndarray:
    """Resize an RGB image of any size and aspect for the vision tower.

    Returns:
        uint8 (3, size_px, size_px). Normalising happens on the training device: bytes travel four times lighter.
    """
    pixels = np.empty((3, spec.size_px, spec.size_px), dtype=np.uint8)
    write_pixels([to_square(image, spec)], pixels[None])
    return pixels


def _scale(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)


def _pad_to_square(image: Image.Image, spec: ImageSpec) -> Image.Image:
    """Centre an image on a square of the mean colour.

    The square of a thin strip can be gigapixels. Beyond `MAX_PIXELS` the longer side is scaled to `size_px` before the
    shorter one is padded: the pixels are the same for wide images, and within rounding for tall ones.
    """
    side = max(image.size)
    width, height = side, side
    if side * side > MAX_PIXELS:
        wide = image.width == side
        width, height = (spec.size_px, side) if wide else (side, spec.size_px)
        image = _scale(image, (spec.size_px, image.height) if wide else (image.width, spec.size_px))
    canvas = Image.new("RGB", (width, height), tuple(int(channel * 255) for channel in spec.mean))
    canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return canvas


def _crop(image: Image.Image, spec: ImageSpec) -> Image.Image:
    """Scale the shortest side to `size_px` and cut the middle out.

    Sides round as in transformers 4.41 (`get_resize_output_image_size`) and torchvision's Resize.
    """
    size, short = spec.size_px, min(image.size)
    scaled = (int(size * image.width / short), int(size * image.height / short))
    left, top = ((n - size) // 2 if spec.resize == "crop" else round((n - size) / 2) for n in scaled)
    if scaled[0] * scaled[1] <= MAX_PIXELS:
        return _scale(image, scaled).crop((left, top, left + size, top + size))
    # Only the middle of a very thin strip is computed: equal but for the rounding of its edges.
    across, down = image.width / scaled[0], image.height / scaled[1]
    box = (left * across, top * down, (left + size) * across, (top + size) * down)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box)
