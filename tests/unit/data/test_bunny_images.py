"""Images reach the tower as Bunny's processors make them, byte for byte; where those fail, they still arrive."""

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from warren.data import images
from warren.data.images import ImageSpec, decode_image, to_pixels
from warren.errors import BadSampleError, ConfigError

ORACLE = Path(__file__).parents[2] / "oracle" / "images"
EXPECTED: dict[str, dict[str, Any]] = json.loads((ORACLE / "expected.json").read_text())
PROCESSORS: dict[str, dict[str, Any]] = json.loads((ORACLE / "processors.json").read_text())
RESIZE = {"siglip": "stretch", "clip": "crop", "eva": "crop_even"}


def spec_of(processor: str, padding: bool) -> ImageSpec:
    family, *_, size = processor.split("_")
    settings = PROCESSORS[processor]
    value = {"size_px": int(size), "mean": settings["image_mean"], "std": settings["image_std"], "padding": padding}
    return ImageSpec.from_json({**value, "resize": RESIZE[family]})


def decoded(name: str) -> Image.Image:
    return decode_image((ORACLE / name).read_bytes())


@pytest.mark.parametrize("processor", PROCESSORS)
def test_pixels_are_bunnys(processor: str) -> None:
    equal = 0
    for key, expected in EXPECTED.items():
        name, by, aspect = key.split("|")
        scrambled = name == "three_px_high.png" and aspect == "none" and not by.startswith("eva")
        if by != processor or "error" in expected or scrambled or name == "gray16.png":
            continue
        pixels = to_pixels(decoded(name), spec_of(by, aspect == "pad"))
        assert hashlib.sha256(pixels.tobytes()).hexdigest() == expected["sha256_of_u8"], key
        equal += 1
    assert equal == (42 if processor.startswith("eva") else 38)


def test_sixteen_bits_are_scaled_where_bunny_clips_them_to_white() -> None:
    deep = np.asarray(Image.open(ORACLE / "gray16.png")).astype(float)
    found = np.asarray(decoded("gray16.png"))[..., 0]
    assert np.abs(found - deep / 257).max() <= 0.5
    clipped = Image.fromarray(deep.clip(0, 255).astype(np.uint8)).convert("RGB")
    pixels = to_pixels(clipped, spec_of("siglip_56", padding=False))
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == EXPECTED["gray16.png|siglip_56|none"]["sha256_of_u8"]


@pytest.mark.parametrize("processor", ["siglip_56", "clip_56"])
@pytest.mark.parametrize(
    ("name", "padding"),
    [("one_pixel.png", True), ("one_pixel.png", False), ("one_px_high.png", False), ("three_px_high.png", False)],
)
def test_images_that_bunny_cannot_read_are_resized_like_all_others(processor: str, name: str, padding: bool) -> None:
    image = decoded(name)
    assert "error" in EXPECTED[f"{name}|{processor}|none"] or name == "three_px_high.png"
    pixels = to_pixels(image, spec_of(processor, padding))
    assert pixels.shape == (3, 56, 56)
    # Columns of the image keep their places: a scrambled image has its colours elsewhere.
    turned = to_pixels(image.transpose(Image.Transpose.ROTATE_90), spec_of(processor, padding))
    assert np.abs(np.rot90(pixels, axes=(1, 2)).astype(int) - turned).max() <= 4  # the passes round in the other order


@pytest.mark.parametrize("name", ["photo.jpg", "wide.png", "tall.png", "palette_transparent.png"])
@pytest.mark.parametrize("processor", ["siglip_56", "clip_56", "eva_56"])
def test_strips_too_large_to_scale_whole_come_out_nearly_the_same(
    name: str, processor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of(processor, padding=False)
    whole = to_pixels(decoded(name), spec)
    padded = to_pixels(decoded(name), replace(spec, padding=True))
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    assert np.abs(to_pixels(decoded(name), spec).astype(int) - whole).max() <= 3
    assert np.abs(to_pixels(decoded(name), replace(spec, padding=True)).astype(int) - padded).max() <= 3


def test_the_longest_line_is_read_and_a_longer_one_refused() -> None:
    line = Image.new("RGB", (images.MAX_SIDE_PX, 1), (255, 0, 0))
    for processor in ("siglip_384", "clip_336"):
        assert to_pixels(line, spec_of(processor, padding=False))[0].min() == 255
        assert to_pixels(line, spec_of(processor, padding=True)).shape[0] == 3
    buffer = io.BytesIO()
    Image.new("1", (images.MAX_SIDE_PX + 1, 1)).save(buffer, "PNG")
    with pytest.raises(BadSampleError, match="65536×1"):
        decode_image(buffer.getvalue())


def test_a_palette_with_graded_transparency_is_read_without_a_warning() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=bytes([0, 128]))
    assert decode_image(buffer.getvalue()).getpixel((0, 0)) == (10, 20, 30)


def test_padding_precedes_cropping() -> None:
    wide = Image.new("RGB", (64, 32), (255, 0, 0))
    spec = ImageSpec(32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), padding=True, resize="crop")
    assert to_pixels(wide, spec)[:, 0, 0].tolist() == [127, 127, 127]


def test_a_spec_survives_json_and_old_ones_stretch() -> None:
    spec = spec_of("clip_336", padding=True)
    value = spec.to_json()
    assert ImageSpec.from_json(json.loads(json.dumps(value))) == spec
    del value["resize"]
    assert ImageSpec.from_json(value).resize == "stretch"
    with pytest.raises(ConfigError, match="'squash'"):
        ImageSpec.from_json({**value, "resize": "squash"})
