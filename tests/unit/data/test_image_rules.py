"""Options of ingest that change images: upright by EXIF, transparency on a background; by default nothing changes."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from warren.data.image_rules import ImageRules
from warren.data.images import decode_image

ORACLE = Path(__file__).parents[2] / "oracle" / "images"
RED, BLUE = (250, 10, 10), (10, 10, 250)


def turned(orientation: int, kind: str = "JPEG", mode: str = "RGB") -> bytes:
    """An image whose left half is red and whose right half is blue, as stored."""
    image = Image.new("RGB", (64, 32), RED)
    image.paste(BLUE, (32, 0, 64, 32))
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, kind, exif=exif)
    return buffer.getvalue()


def test_by_default_every_file_stays_as_it_is() -> None:
    for path in ORACLE.glob("*.*g"):
        assert ImageRules().rewritten(path.read_bytes()) == path.read_bytes()


@pytest.mark.parametrize(
    ("orientation", "size", "red_at"),
    [(3, (64, 32), (60, 5)), (6, (32, 64), (5, 5)), (8, (32, 64), (5, 60)), (2, (64, 32), (60, 5))],
)
@pytest.mark.parametrize(("kind", "mode"), [("JPEG", "RGB"), ("PNG", "P"), ("WEBP", "RGB"), ("JPEG", "CMYK")])
def test_images_are_turned_upright(
    orientation: int, size: tuple[int, int], red_at: tuple[int, int], kind: str, mode: str
) -> None:
    data = turned(orientation, kind, mode)
    assert decode_image(data).size == (64, 32)  # as trained by default
    upright = decode_image(ImageRules(exif_orientation="apply").rewritten(data))
    assert upright.size == size
    red, _, blue = upright.getpixel(red_at)  # type: ignore[misc]
    assert red > 150 > blue


def test_upright_images_and_broken_exif_stay_bytes() -> None:
    rules = ImageRules(exif_orientation="apply", alpha="white")
    for data in (turned(1), turned(9), (ORACLE / "photo.jpg").read_bytes()):
        assert rules.rewritten(data) == data
    broken = turned(6).replace(b"MM\x00*", b"MM\xff\xff").replace(b"II*\x00", b"II\xff\xff")
    assert broken != turned(6)
    assert rules.rewritten(broken) == broken


@pytest.mark.parametrize("colour", ["white", "black"])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_images_are_put_on_a_background(colour: str, mode: str) -> None:
    image = Image.new("RGBA", (8, 8), (0, 128, 0, 0))
    image.paste((9, 9, 9, 255), (0, 0, 4, 8))
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, "PNG")
    pixels = np.asarray(decode_image(ImageRules(alpha=colour).rewritten(buffer.getvalue())))  # type: ignore[arg-type]
    assert (pixels[:, 4:] == (255 if colour == "white" else 0)).all()
    assert np.abs(pixels[:, :4].astype(int) - 9).max() <= 3


def test_a_palette_s_transparent_colour_is_put_on_a_background() -> None:
    data = (ORACLE / "palette_transparent.png").read_bytes()
    white, black = (np.asarray(decode_image(ImageRules(alpha=c).rewritten(data))) for c in ("white", "black"))
    assert (white != black).any()
