"""Pictures: what is refused, and what the tower gets."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from factories import picture
from warren.data.images import ImageSpec, decode_image, to_pixels
from warren.errors import BadSampleError

SPEC = ImageSpec(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def bomb() -> bytes:
    """A PNG of a few bytes that claims 100,000 × 100,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"not a picture", "no known image format"),
        (picture()[:60], "cannot be decoded"),
        (picture(size=(300, 300), kind="JPEG")[:-400], "cannot be decoded"),
        (bomb(), "pixels"),
    ],
)
def test_unusable_pictures_are_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadSampleError, match=reason):
        decode_image(data)


def test_a_jpeg_of_very_many_scans_is_refused_and_bytes_that_look_like_scans_are_not() -> None:
    """A scan costs as much time as its picture has pixels, and as few as ten bytes."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (10, 20, 30)).save(buffer, "JPEG", progressive=True)
    plain = buffer.getvalue()
    scan = plain[plain.rindex(b"\xff\xda") : -2]
    assert decode_image(plain[:-2] + scan * 80 + b"\xff\xd9").size == (32, 32)
    with pytest.raises(BadSampleError, match="more than 100 scans"):
        decode_image(plain[:-2] + scan * 2_000 + b"\xff\xd9")
    many = b"\xff\xda\0\4\0\0" * 1_000
    thumbnail = b"\xff\xe1" + struct.pack(">H", len(many) + 2) + many
    assert decode_image(plain[:2] + thumbnail + plain[2:] + many).size == (32, 32)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "1", "LA"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), (200, 100, 50)).convert(mode).save(buffer, "TIFF" if mode in ("CMYK", "LA") else "PNG")
    pixels = to_pixels(decode_image(buffer.getvalue()), SPEC)
    assert pixels.shape == (3, 32, 32)
    assert pixels.dtype == np.uint8


def test_padding_keeps_the_aspect_and_fills_with_the_mean() -> None:
    wide = Image.new("RGB", (64, 32), (255, 0, 0))
    padded = to_pixels(wide, ImageSpec(64, SPEC.mean, SPEC.std, padding=True))
    assert padded[:, 0, 0].tolist() == [127, 127, 127]
    assert padded[:, 32, 32].tolist() == [255, 0, 0]
    assert to_pixels(wide, ImageSpec(64, SPEC.mean, SPEC.std))[:, 0, 0].tolist() == [255, 0, 0]


def test_pictures_of_the_right_size_are_not_touched() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(to_pixels(Image.fromarray(noise), SPEC), noise.transpose(2, 0, 1))
