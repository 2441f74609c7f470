"""pyarrow's S3 filesystem: what its errors say in text only."""

import re

# Behind the names of bucket and key, which may contain any of these words: the last match is pyarrow's own.
_AWS_ERROR = re.compile(
    r".*AWS Error (?P<kind>[A-Z_]+)(?: \(HTTP status (?P<status>\d+)\))? during \w+ operation", re.S
)
_PASSING = {
    "NETWORK_CONNECTION",
    "SLOW_DOWN",
    "SERVICE_UNAVAILABLE",
    "INTERNAL_FAILURE",
    "REQUEST_TIMEOUT",
    "THROTTLING",
}


def is_transient(error: Exception) -> bool:
    """Tell whether a read failed because the S3 server is away or overloaded.

    Why: pyarrow raises an `OSError` for whatever went wrong, and says what only in its text.
    Upstream: `ErrorToStatus` in `cpp/src/arrow/filesystem/s3_internal.h` of Arrow 26 writes the text.
    If it breaks: Reads through a server that is away end at once instead of trying again. Match the new text.
    """
    match = _AWS_ERROR.search(str(error)) if isinstance(error, OSError) else None
    return match is not None and (match["kind"] in _PASSING or (match["status"] or "").startswith(("5", "429")))
