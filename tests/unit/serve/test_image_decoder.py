"""Images that cost more than they look like, and images that two decoders see differently."""

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from chat_parts import image_part, text, user
from warren.data.model_inputs import Inputs
from warren.inference import GenerationRequest, TokenDelta
from warren.inference.testing import png_bytes
from warren_serve.errors import ApiError
from warren_serve.image_decoder import ImageDecoder

URL = "messages.0.content.0.image_url.url"


def jpeg_of_scans(num_scans: int, side: int = 256) -> bytes:
    """Return a progressive JPEG of one grey, whose scans say in a few bytes that nothing changes."""
    blocks = (side // 8) ** 2
    parts = [b"\xff\xd8", _segment(0xDB, b"\0" + bytes([1] * 64))]
    parts.append(_segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\x01\x11\0"))
    counts = bytes([1] + [0] * 15)
    parts += [_segment(0xC4, b"\0" + counts + b"\0"), _segment(0xC4, b"\x10" + counts + b"\xa0")]
    parts.append(_segment(0xDA, b"\x01\x01\0\0\0\0") + bytes(blocks // 8))
    # A run of 1024 blocks without coefficients: code 0, then ten bits of 0.
    scan = _segment(0xDA, b"\x01\x01\0\x01\x3f\0") + b"\0\x1f"
    return b"".join([*parts, *[scan] * num_scans, b"\xff\xd9"])


def _segment(marker: int, payload: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload


def png_of_chunks(num_chunks: int) -> bytes:
    """Return a PNG with chunks of no bytes that mean nothing; Pillow reads each in Python."""
    plain = png_bytes()
    chunk = struct.pack(">I", 0) + b"abCd" + struct.pack(">I", zlib.crc32(b"abCd"))
    return plain[:33] + chunk * num_chunks + plain[33:]


def jpeg_of_comments(num_comments: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32)).save(buffer, "JPEG")
    return b"\xff\xd8" + b"\xff\xfe\0\2" * num_comments + buffer.getvalue()[2:]


def hello(_: GenerationRequest) -> list[TokenDelta]:
    return [TokenDelta("Hello", (5,), finish_reason="stop")]


@pytest.fixture(scope="module")
def impatient() -> Iterator[ImageDecoder]:
    decoder = ImageDecoder(1, 100_000, 0.2)
    yield decoder
    decoder.close()


@pytest.fixture(scope="module")
def inputs(tiny_folder: Path) -> Inputs:
    return Inputs.load(tiny_folder)


@pytest.mark.parametrize("bomb", [png_of_chunks(300_000), jpeg_of_comments(1_000_000)], ids=["png", "jpeg"])
def test_an_image_that_takes_too_long_is_refused_and_the_next_one_is_not(
    impatient: ImageDecoder, inputs: Inputs, bomb: bytes
) -> None:
    with pytest.raises(ApiError) as refused:
        impatient.pixels(inputs, [png_bytes(), bomb], ["first", "second"])
    assert (refused.value.status, refused.value.code, refused.value.param) == (400, "invalid_image", "second")
    assert "0.2 s of CPU time" in refused.value.message
    assert impatient.pixels(inputs, [png_bytes((1, 2, 3))], ["first"])[0, :, 0, 0].tolist() == [1, 2, 3]


def test_the_images_of_a_request_share_its_time(impatient: ImageDecoder, inputs: Inputs) -> None:
    slow = png_of_chunks(5_000)
    for _ in range(3):
        assert impatient.pixels(inputs, [slow], ["0"]).shape == (1, 3, 32, 32)
    with pytest.raises(ApiError) as refused:
        impatient.pixels(inputs, [slow] * 50, [str(number) for number in range(50)])
    assert 0 < int(refused.value.param or 0) < 50
    with pytest.raises(ApiError, match="cannot be read"):
        impatient.pixels(inputs, [png_bytes(), b"no image", png_bytes()], ["0", "1", "2"])
    assert impatient.pixels(inputs, [png_bytes()] * 3, ["0", "1", "2"]).shape == (3, 3, 32, 32)


def test_a_decoder_that_was_ended_is_the_servers_fault_and_starts_again(
    impatient: ImageDecoder, inputs: Inputs
) -> None:
    impatient.pixels(inputs, [png_bytes()], ["x"])
    (worker,) = impatient._all
    assert worker._process is not None
    worker._process.kill()
    with pytest.raises(ApiError) as ended:
        impatient.pixels(inputs, [png_bytes()], ["x"])
    assert ended.value.status == 503
    assert impatient.pixels(inputs, [png_bytes()] * 2, ["x", "y"]).shape == (2, 3, 32, 32)
    assert impatient.pixels(inputs, [], []).shape == (0, 3, 32, 32)


def test_a_jpeg_of_thousands_of_scans_is_refused_before_it_is_decoded(scripted: Any) -> None:
    endpoint, engine = scripted(hello, {"max_image_pixels": 1_000_000})
    few, many = (jpeg_of_scans(number, side=96) for number in (60, 5_000))
    assert endpoint.chat(messages=[user(image_part(few), text("what?"))]).status_code == 200
    answer = endpoint.chat(messages=[user(image_part(many), text("what?"))])
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_image", URL)
    assert "scans" in error["message"]
    assert len(engine.requests) == 1


def test_an_image_is_decoded_as_the_format_it_was_checked_as(scripted: Any) -> None:
    """These bytes are a small WebP and, from byte 2048 on, a PhotoCD image of 768x512 pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (250, 10, 20)).save(buffer, "WEBP", lossless=True)
    both = bytearray(buffer.getvalue().ljust(400_000 + 2048, b"\0"))
    both[2048:2055] = b"PCD_IPI"
    assert Image.open(io.BytesIO(both), formats=("PCD",)).size == (768, 512)
    endpoint, engine = scripted(hello)
    assert endpoint.chat(messages=[user(image_part(bytes(both)), text("what?"))]).status_code == 200
    assert np.abs(engine.requests[0].pixels[0, :, 0, 0].astype(int) - [250, 10, 20]).max() <= 1
