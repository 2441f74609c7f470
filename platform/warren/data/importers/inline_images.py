"""Images inside a text: `data:` URIs (RFC 2397) and bare Base64."""

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

from warren.data.printable import shown
from warren.errors import BadSampleError

# The Base64 of the first bytes of JPEG, PNG, GIF, WebP and TIFF. A path can begin like this too, but it has a dot,
# which Base64 has not.
_BEGINNINGS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "SUkqA", "TU0AK")
_MIN_CHARACTERS = 64
_ALPHABET = re.compile(r"[A-Za-z0-9+/_\-\s]*={0,2}")  # no \s at the end: runs of it take quadratic time
_SPACE = re.compile(r"\s+")
_URL_SAFE = str.maketrans("-_", "+/")


def inlined(text: str) -> bytes | None:
    """Return the bytes of an image that a text contains, or None for a text that only names one.

    Raises:
        BadSampleError: The text contains an image in a wrong encoding.
    """
    text = text.strip()
    if text[:5].lower() == "data:":
        return _data_uri(text)
    if len(text) >= _MIN_CHARACTERS and text.startswith(_BEGINNINGS) and _ALPHABET.fullmatch(text):
        return unpacked(text)
    return None


def unpacked(text: str) -> bytes:
    """Return the bytes of Base64, of either alphabet, with or without line breaks and padding.

    Raises:
        BadSampleError: It is no Base64.
    """
    if text[:5].lower() == "data:":
        return _data_uri(text)
    packed = _SPACE.sub("", text).rstrip("=").translate(_URL_SAFE)
    try:
        return base64.b64decode(packed + "=" * (-len(packed) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise BadSampleError(f"the image is no Base64: {shown(text, 40)!r}") from None


def _data_uri(text: str) -> bytes:
    header, comma, body = text.partition(",")
    if not comma:
        raise BadSampleError(f"the data URI {shown(text, 40)!r} has no comma, and no image behind it")
    if header.replace(" ", "").lower().endswith(";base64"):
        return unpacked(unquote_to_bytes(body).decode("latin-1") if "%" in body else body)
    return unquote_to_bytes(body)
