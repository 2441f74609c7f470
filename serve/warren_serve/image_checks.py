"""Checks of images from clients before they are decoded: first bytes, format, animation and size."""

import io

from PIL import Image

from warren_serve.errors import ApiError, bad_request

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")

_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM")


def check_format(data: bytes, param: str) -> None:
    """Check by its first bytes that data can be an image; the cost does not depend on the rest.

    Raises:
        ApiError: 400.
    """
    if not (data.startswith(_MAGIC) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")):
        raise _unreadable(param)


def check_image(data: bytes, max_pixels: int, param: str) -> str:
    """Check format, animation and size of an image by its header. Nothing is decoded, but headers can take long.

    Returns:
        The format, one of `FORMATS`. Decode it as this format only, or another image may appear.

    Raises:
        ApiError: 400.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (
        Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ):  # the latter where warnings are errors
        raise _too_many_pixels(max_pixels, param) from None
    except Exception:  # Pillow's parsers raise many kinds on broken headers
        raise _unreadable(param) from None
    with image:
        width, height = image.size
        if width * height > max_pixels:
            raise _too_many_pixels(max_pixels, param)
        if width < 1 or height < 1:
            raise bad_request("The image has no pixels.", "invalid_image", param)
        # MPO, which phones write, is a JPEG followed by a depth map or preview; its first frame is used.
        if image.format != "MPO" and _is_animated(image):
            raise bad_request("The image is animated; send a still one.", "animated_image", param)
        return image.format if image.format in FORMATS else "JPEG"


def _is_animated(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # later frames are broken; decoding the first decides
        return False


def _unreadable(param: str) -> ApiError:
    formats = ", ".join(FORMATS)
    return bad_request(f"The image cannot be read; {formats} are understood.", "invalid_image", param)


def _too_many_pixels(max_pixels: int, param: str) -> ApiError:
    return bad_request(f"The image has more than {max_pixels} pixels.", "image_too_large", param)
