"""Comparing images: altered copies fit, images that differ in a part do not, whatever the rest is."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from benchmarks.contamination import KINDS, altered
from benchmarks.drawn_images import drawn_image
from PIL import Image, ImageDraw

from warren.curate.crop_matching import (
    WHOLE,
    best_fit,
    boxes,
    compared_pixels,
    differs_in_a_part,
    hashes_and_pixels,
    thumbnail,
)

MIN_CORRELATION = 0.97
Draw = Callable[[ImageDraw.ImageDraw], None]


def are_copies(copy: Image.Image, original: Image.Image, crops: int = 3) -> bool:
    """Tell what a search that starts from the most likely crops says."""
    small, grey = thumbnail(original.convert("L")), copy.convert("L")
    shown, (_, (coarse,)) = compared_pixels(grey), hashes_and_pixels(thumbnail(grey), [WHOLE])
    assert shown is not None
    for side in (small, small[:, ::-1]):
        alike = hashes_and_pixels(side, list(boxes()))[1] @ coarse
        for place in np.argsort(-alike)[:crops].tolist():
            best, box = best_fit(shown, side, boxes()[place], MIN_CORRELATION)
            if best >= MIN_CORRELATION and not differs_in_a_part(shown, side, box):
                return True
    return False


@pytest.mark.parametrize("kind", KINDS)
def test_copies_fit_and_other_images_do_not(kind: str) -> None:
    random = np.random.default_rng(3)
    encoded = [drawn_image(number) for number in range(40)]
    images = [Image.open(io.BytesIO(data)) for data in encoded]
    copies = [Image.open(io.BytesIO(altered(data, kind, random))) for data in encoded]
    assert sum(map(are_copies, copies, images)) >= 39
    assert not any(map(are_copies, copies, images[1:]))


def face(mouth: Draw) -> Image.Image:
    image = Image.new("RGB", (200, 200), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse([10, 10, 190, 190], fill=(250, 190, 50))
    for left in (60, 120):
        draw.ellipse([left, 60, left + 22, 95], fill=(60, 30, 30))
    mouth(draw)
    return image


def test_faces_that_differ_in_the_mouth_are_no_copies() -> None:
    brown = (80, 40, 20)
    smile = face(lambda draw: draw.arc([70, 95, 130, 137], 20, 160, brown, 8))
    straight = face(lambda draw: draw.rectangle([70, 130, 130, 138], brown))
    shown, small = compared_pixels(smile.convert("L")), thumbnail(straight.convert("L"))
    assert shown is not None
    assert best_fit(shown, small, WHOLE, MIN_CORRELATION)[0] > MIN_CORRELATION  # the whole is alike
    assert not are_copies(smile, straight)
    assert not are_copies(straight, face(lambda draw: None))
    buffer = io.BytesIO()
    smile.resize((90, 90)).save(buffer, "JPEG", quality=40)
    assert are_copies(Image.open(buffer), smile)
