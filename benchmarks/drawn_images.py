"""Images that are drawn by a number: photo-like noise, icons, scenes of shapes, text, charts, flags and mosaics.

They are cheap (a few milliseconds each), and no two numbers give the same one.
"""

import io
import string
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

Random = np.random.Generator


def drawn_image(number: int) -> bytes:
    """Return the JPEG of a number."""
    random = np.random.default_rng([7, number])
    size = int(random.integers(96, 192)), int(random.integers(96, 192))
    image = _KINDS[int(random.integers(len(_KINDS)))](random, size)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(random.integers(75, 96)))
    return buffer.getvalue()


def _colour(random: Random) -> tuple[int, int, int]:
    red, green, blue = random.integers(0, 256, 3).tolist()
    return red, green, blue


def _box(random: Random, size: tuple[int, int], smallest: float, largest: float) -> list[int]:
    """Return a random box: left, top, right, bottom."""
    width, height = (int(side * random.uniform(smallest, largest)) + 1 for side in size)
    left, top = int(random.integers(0, size[0] - width // 2)), int(random.integers(0, size[1] - height // 2))
    return [left, top, left + width, top + height]


def _photo(random: Random, size: tuple[int, int]) -> Image.Image:
    """Noise of several scales, the coarser the stronger, as in photos."""
    total = np.zeros((size[1], size[0], 3), np.float32)
    for cells, strength in ((3, 1.0), (7, 0.6), (16, 0.35), (40, 0.2)):
        small = random.integers(0, 256, (cells, cells, 3), np.uint8)
        total += strength * np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BICUBIC), np.float32)
    low, high = float(total.min()), float(total.max())
    return Image.fromarray(((total - low) / (high - low) * 255).astype(np.uint8))


def _scene(random: Random, size: tuple[int, int]) -> Image.Image:
    """Shapes on a gradient."""
    small = random.integers(0, 256, (2, 3, 3), np.uint8)
    image = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(int(random.integers(6, 24))):
        shape = draw.ellipse if random.random() < 0.5 else draw.rectangle
        shape(_box(random, size, 0.05, 0.5), fill=_colour(random))
    return image


def _icon(random: Random, size: tuple[int, int]) -> Image.Image:
    """A few polygons in the middle of a white image."""
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for _ in range(int(random.integers(3, 8))):
        angles = np.sort(random.uniform(0, 2 * np.pi, int(random.integers(3, 9))))
        radius = random.uniform(0.15, 0.45, len(angles)) * min(size)
        middle = np.array(size) * random.uniform(0.35, 0.65, 2)
        points = middle + radius[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        draw.polygon([(float(x), float(y)) for x, y in points], fill=_colour(random))
    return image


def _text(random: Random, size: tuple[int, int]) -> Image.Image:
    """Lines of random words."""
    image = Image.new("RGB", size, _light(random))
    draw = ImageDraw.Draw(image)
    letters = np.array(list(string.ascii_lowercase + "     "))
    height = int(random.integers(10, 26))
    for top in range(2, size[1], height):
        draw.text(
            (4, top), "".join(random.choice(letters, int(random.integers(4, 40)))), fill="black", font_size=height
        )
    return image


def _chart(random: Random, size: tuple[int, int]) -> Image.Image:
    """Bars or lines over an axis."""
    image = Image.new("RGB", size, _light(random))
    draw = ImageDraw.Draw(image)
    count = int(random.integers(4, 14))
    edges = np.linspace(8, size[0] - 8, count + 1)
    for _ in range(int(random.integers(1, 4))):
        tops, colour = random.uniform(0.05, 0.95, count) * size[1], _colour(random)
        if random.random() < 0.5:
            draw.line([(float(x), float(y)) for x, y in zip(edges[:-1], tops, strict=True)], fill=colour, width=4)
            continue
        for left, right, top in zip(edges[:-1], edges[1:], tops, strict=True):
            draw.rectangle([int(left), int(top), int(right) - 3, size[1]], fill=colour)
    draw.line([(6, 4), (6, size[1] - 4), (size[0] - 4, size[1] - 4)], fill="black", width=2)
    return image


def _flag(random: Random, size: tuple[int, int]) -> Image.Image:
    """Stripes of random widths with an emblem."""
    image = Image.new("RGB", size, _colour(random))
    draw, lies = ImageDraw.Draw(image), random.random() < 0.5
    edges = np.sort(random.uniform(0.1, 0.9, int(random.integers(1, 5)))).tolist()
    for edge in edges:
        start = (0, int(edge * size[1])) if lies else (int(edge * size[0]), 0)
        draw.rectangle([start, size], fill=_colour(random))
    for _ in range(int(random.integers(2, 5))):
        draw.ellipse(_box(random, size, 0.1, 0.35), fill=_colour(random))
    return image


def _mosaic(random: Random, size: tuple[int, int]) -> Image.Image:
    """Tiles of random colours."""
    cells = random.integers(4, 12, 2).tolist()
    tiles = random.integers(0, 256, (cells[0], cells[1], 3), np.uint8)
    return Image.fromarray(tiles).resize(size, Image.Resampling.NEAREST)


def _light(random: Random) -> tuple[int, int, int]:
    red, green, blue = random.integers(200, 256, 3).tolist()
    return red, green, blue


_KINDS: tuple[Callable[[Random, tuple[int, int]], Image.Image], ...] = (
    _photo,
    _photo,
    _scene,
    _scene,
    _icon,
    _text,
    _chart,
    _flag,
    _mosaic,
)
