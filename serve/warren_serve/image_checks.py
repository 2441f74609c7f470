"""Images that come over HTTP, hostile until checked: bytes, then format, then size, then pixels."""

import io

from PIL import Image

from warren_serve.errors import ApiError, bad_request

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")

_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM")


def check_format(data: bytes, param: str) -> None:
    """Check by the first bytes that data can be an image: cheap, however hostile the rest is.

    Raises:
        ApiError: 400.
    """
    if not (data.startswith(_MAGIC) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")):
        raise _unreadable(param)


def check_image(data: bytes, max_pixels: int, param: str) -> str:
    """Check format, stillness and size from an image's header; nothing is decoded, but reading a header can take long.

    Returns:
        The format, one of `FORMATS`, which it must be decoded as: other decoders may see another image in the bytes.

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
        # MPO is a JPEG with a depth map or preview behind it, as phones write: its first frame counts.
        if image.format != "MPO" and _is_animated(image):
            raise bad_request("The image is animated; send a still one.", "animated_image", param)
        return image.format if image.format in FORMATS else "JPEG"


def _is_animated(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # broken frames behind the first: decoding decides
        return False


def _unreadable(param: str) -> ApiError:
    formats = ", ".join(FORMATS)
    return bad_request(f"The image cannot be read; {formats} are understood.", "invalid_image", param)


def _too_many_pixels(max_pixels: int, param: str) -> ApiError:
    return bad_request(f"The image has more than {max_pixels} pixels.", "image_too_large", param)
