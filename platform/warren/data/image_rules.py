"""Changes to images at ingest: EXIF orientation and a background for transparency. Other images keep their bytes."""

import io
from dataclasses import dataclass, replace
from typing import Literal

from PIL import ExifTags, Image, ImageOps

from warren.data.grey_images import DEEP_MODES, to_8_bits
from warren.data.image_formats import open_image
from warren.data.sample import Sample


@dataclass(frozen=True)
class ImageRules:
    """Changes that ingest makes once, so that every later reader sees the same image.

    Attributes:
        exif_orientation: `apply` turns images as EXIF says.
        alpha: The background that transparent images are put on; `drop` puts them on none.
    """

    exif_orientation: Literal["ignore", "apply"] = "ignore"
    alpha: Literal["drop", "white", "black"] = "drop"

    def apply(self, sample: Sample) -> Sample:
        """Return a sample whose images can be decoded with the rules applied to them."""
        if self == ImageRules():
            return sample
        return replace(sample, images=tuple(self.rewritten(image) for image in sample.images))

    def rewritten(self, data: bytes) -> bytes:
        """Return the same bytes, or a PNG of the changed image."""
        with open_image(data) as image:
            turns = self.exif_orientation == "apply" and _orientation(image) != 1
            blends = self.alpha != "drop" and image.has_transparency_data and image.mode not in DEEP_MODES
            if not turns and not blends:
                return data
            if not blends:
                image.info.pop("transparency", None)
            image.load()
            converted = ImageOps.exif_transpose(image) if turns else image
            converted = self._on_background(converted) if blends else _rgb(converted)
        buffer = io.BytesIO()
        converted.save(buffer, "PNG")
        return buffer.getvalue()

    def _on_background(self, image: Image.Image) -> Image.Image:
        canvas = Image.new("RGBA", image.size, self.alpha)
        canvas.alpha_composite(image.convert("RGBA"))
        return canvas.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 where there is none or it cannot be read."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow's parsers raise many kinds on broken EXIF data; the image itself may be sound
        return 1
    return orientation if orientation in range(1, 9) else 1


def _rgb(image: Image.Image) -> Image.Image:
    return to_8_bits(image).convert("RGB") if image.mode in DEEP_MODES else image.convert("RGB")
