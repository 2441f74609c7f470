"""Boxes in answers (x1, y1, x2, y2: the left, upper, right and lower edges), and how well they fit."""

import re
from collections.abc import Sequence

ImageBox = tuple[float, float, float, float]

_NUMBER = r"\s*(-?\d+(?:\.\d+)?)"
_BOX = re.compile(rf"\[{','.join([_NUMBER] * 4)}\s*\]")  # as lmms-eval reads them: no space before a comma


def first_box(text: str) -> ImageBox | None:
    """Return the first four numbers in square brackets, `[x1, y1, x2, y2]`; None where there are none."""
    match = _BOX.search(text)
    if match is None:
        return None
    left, upper, right, lower = map(float, match.groups())
    return left, upper, right, lower


def intersection_over_union(first: ImageBox, second: ImageBox) -> float:
    """Return the area that two boxes share, as a part of the area that they cover together."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(0.0, width) * max(0.0, height)
    covered = _area(first) + _area(second) - shared
    return shared / covered if covered else 0.0


def holds_centre(box: ImageBox, other: ImageBox) -> bool:
    """Tell whether the centre of another box lies in a box."""
    across, down = (other[0] + other[2]) / 2, (other[1] + other[3]) / 2
    return box[0] <= across <= box[2] and box[1] <= down <= box[3]


def relative_box(box: Sequence[float], size: tuple[int, int]) -> ImageBox:
    """Return a box of COCO's form (left, upper, width, height in pixels) as edges between 0 and 1.

    Args:
        box: In pixels.
        size: Width and height of the image.
    """
    left, upper, width, height = box
    return left / size[0], upper / size[1], (left + width) / size[0], (upper + height) / size[1]


def _area(box: ImageBox) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
