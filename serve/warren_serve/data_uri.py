"""Images in `data:` URIs, in every spelling that RFC 2397 allows."""

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

from warren_serve.errors import bad_request

_MAX_HEAD_CHARS = 300
_TOKEN = r"[A-Za-z0-9!#$&^_.+-]+"
# `*+` does not backtrack. Otherwise a value's trailing spaces would also be tried as those before the next parameter,
# and the time to refuse a URI would be exponential in the number of its parameters.
_PARAMETER = rf"\s*;\s*{_TOKEN}=(?:\"[^\"]*\"|[^;,\"]*+)"
_HEAD = re.compile(
    rf"data:\s*(?P<type>{_TOKEN}/{_TOKEN})?(?:{_PARAMETER})*(?P<base64>\s*;\s*base64)?\s*,", re.IGNORECASE
)
_TYPES = ("image/", "application/octet-stream", "binary/octet-stream")


def decode_data_uri(url: str, param: str) -> bytes:
    """Return the bytes of `data:[type][;name=value][;base64],…`; upper and lower case are equal before the comma.

    The type must be an image's or a general one, because the format is detected from the bytes. Base64 must be exact;
    percent-encoding is decoded, also in base64.

    Raises:
        ApiError: 400; another kind of URI, or base64 that is not exact.
    """
    head = _HEAD.match(url[:_MAX_HEAD_CHARS])
    if not head or not (head["type"] or _TYPES[0]).lower().startswith(_TYPES):
        message = "The image must be a data:image/…;base64,… URI, or an http(s) URL where the endpoint fetches those."
        raise bad_request(message, "invalid_image_url", param)
    data = url[head.end() :]
    try:
        if not head["base64"]:
            return unquote_to_bytes(data)
        return base64.b64decode(unquote_to_bytes(data) if "%" in data else data.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise bad_request(f"The image is not valid base64: {error}.", "invalid_base64", param) from None
