"""Pillow's own limit of pixels."""

from PIL import Image


def lift_pixel_limit() -> None:
    """Have Pillow open images of any size in this process.

    Why: Warren checks every image's size before pixels are decoded (`max_pixels`). Pillow's limit would be a second
        owner of the same rule, and refuses with an error of its own.
    Upstream: `MAX_IMAGE_PIXELS` in `PIL/Image.py` of Pillow 13, a documented setting of the whole process.
    If it breaks: Large images that recipes allow are refused by Pillow. Look for the new switch.
    """
    Image.MAX_IMAGE_PIXELS = None
