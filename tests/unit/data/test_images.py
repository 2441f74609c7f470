"""Images: what is refused, and what the tower gets."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from factories import make_image
from warren.data.images import MAX_PIXELS, ImageSpec, decode_image, to_pixels
from warren.errors import BadSampleError

SPEC = ImageSpec(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def claim(side_px: int) -> bytes:
    """A PNG of a few bytes that claims that many pixels a side."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side_px, side_px, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"not an image", "no known image format"),
        (make_image()[:60], "cannot be decoded"),
        (make_image(size=(300, 300), kind="JPEG")[:-400], "cannot be decoded"),
        (claim(100_000), "pixels"),
    ],
)
def test_unusable_images_are_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadSampleError, match=reason):
        decode_image(data)


def test_a_jpeg_of_very_many_scans_is_refused_and_bytes_that_look_like_scans_are_not() -> None:
    """A scan costs as much time as its image has pixels, and as few as ten bytes."""
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


def test_fill_bytes_of_a_jpeg_are_passed_over_in_linear_time() -> None:
    """Any number of 0xff may stand in front of a segment; in quadratic time these would take hours."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (10, 20, 30)).save(buffer, "JPEG", progressive=True)
    plain = buffer.getvalue()
    scan = plain[plain.rindex(b"\xff\xda") : -2]
    with pytest.raises(BadSampleError, match="more than 100 scans"):
        decode_image(plain[:-2] + b"\xff" * 1_000_000 + scan * 200 + b"\xff\xd9")
    with pytest.raises(BadSampleError, match="more than 100 scans"):
        decode_image(plain[:-2] + b"\xff" * 1_000_000 + b"\0" + scan * 200 + b"\xff\xd9")


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


def test_images_of_the_right_size_are_not_touched() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(to_pixels(Image.fromarray(noise), SPEC), noise.transpose(2, 0, 1))


RAMP = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)


def encoded(values: np.ndarray, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        encoded(RAMP, "PNG"),
        encoded(RAMP, "TIFF"),
        encoded(RAMP.astype(">u2"), "TIFF"),  # mode I;16B
        encoded(RAMP, "JPEG2000"),
        encoded(RAMP.astype(np.int32), "TIFF"),  # mode I
        encoded(RAMP.astype(np.int32), "PPM"),
        encoded(RAMP >> 4, "PNG"),  # 12 bits in a container of 16
        encoded(RAMP >> 4, "TIFF"),
        encoded(RAMP >> 8, "PNG"),
        encoded((RAMP / 65535).astype(np.float32), "TIFF"),
        encoded((RAMP / 257).astype(np.float32), "TIFF"),
    ],
)
def test_grey_images_of_more_bits_keep_their_brightness(data: bytes) -> None:
    assert Image.open(io.BytesIO(data)).mode != "L"
    expected = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(np.asarray(decode_image(data)), np.stack([expected] * 3, axis=-1))


def test_a_tiff_whose_zero_is_white_is_turned_around() -> None:
    data = encoded(RAMP, "TIFF", tiffinfo={262: 0})
    assert np.asarray(decode_image(data))[..., 0].ravel().tolist() == list(range(255, -1, -1))


@pytest.mark.parametrize(
    "values",
    [
        RAMP.astype(np.float32),
        -RAMP.astype(np.int32),
        RAMP.astype(np.int32) * 1000,
        np.full((4, 4), np.nan, np.float32),
        np.full((4, 4), -0.5, np.float32),
    ],
)
def test_values_of_no_known_brightness_are_refused(values: np.ndarray) -> None:
    with pytest.raises(BadSampleError, match="convert it to 8 bits"):
        decode_image(encoded(values, "TIFF"))


def test_only_the_caller_limits_pixels() -> None:
    data = encoded(np.zeros((100, 20_000), np.uint8), "PNG")
    with pytest.raises(BadSampleError, match="at most 1999999"):
        decode_image(data, max_pixels=1_999_999)
    assert decode_image(data, max_pixels=2_000_000).size == (20_000, 100)
    with pytest.raises(BadSampleError, match="13400×13400 pixels; at most 64000000"):  # beyond Pillow's own limit, too
        decode_image(claim(13_400))
    with pytest.raises(BadSampleError, match="cannot be decoded"):  # it is tried
        decode_image(claim(13_400), max_pixels=None)
    assert MAX_PIXELS < 13_400**2
