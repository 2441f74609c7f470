"""API keys. The endpoint only has their SHA-256 digests, and reads them again without a restart."""

import hmac
import logging
import os
from pathlib import Path

from warren.errors import ConfigError
from warren.storage import digest_bytes
from warren_serve.errors import ApiError
from warren_serve.settings import ServeSettings

logger = logging.getLogger(__name__)

ANONYMOUS = "anonymous"
_HEX = frozenset("0123456789abcdef")


class KeyRing:
    """The digests of the valid keys. Without a source, every request is admitted.

    Args:
        settings: They name the variable or the file.

    Raises:
        ConfigError: A source has no digests. Serving without keys would then be a mistake.
    """

    def __init__(self, settings: ServeSettings) -> None:
        self._variable = settings.api_keys_env
        self._path = Path(settings.api_keys_file) if settings.api_keys_file else None
        self._stamp: tuple[int, int, int] | None = None
        self._complaint = ""
        self._from_file: frozenset[str] = frozenset()
        self._from_env: frozenset[str] = frozenset()
        if self._variable:
            self._from_env = _digests(os.environ.get(self._variable, "").replace(",", "\n"), self._variable)
        if self._path:
            self._read_file(self._path)
        if self.is_closed and not self._from_env | self._from_file:
            sources = " and ".join(str(source) for source in (self._variable, self._path) if source)
            raise ConfigError(f"API keys are required, but {sources} has no SHA-256 digest: add one digest a line")

    @property
    def is_closed(self) -> bool:
        """Whether requests need a key."""
        return self._variable is not None or self._path is not None

    def check(self, authorization: str | None) -> str:
        """Check a request's `Authorization` header; returns the key's digest, or `anonymous`.

        Raises:
            ApiError: 401; no key, or an unknown one.
        """
        if not self.is_closed:
            return ANONYMOUS
        if self._path:
            self._read_file(self._path)
        scheme, _, key = (authorization or "").partition(" ")
        key = key.strip(" \t")  # not all white space: bytes that Latin-1 reads as spaces are parts of letters in UTF-8
        if scheme.lower() != "bearer" or not key:
            raise _unauthorized("An API key is needed: Authorization: Bearer KEY.", "missing_api_key")
        # Starlette reads headers as Latin-1. If the client sent UTF-8, the first digest is right, else the second.
        candidates = [digest_bytes(key.encode(coding, "replace")) for coding in ("latin-1", "utf-8")]
        # Every digest is compared in constant time, so that the response time reveals nothing.
        pairs = [(one, digest) for one in candidates for digest in self._from_env | self._from_file]
        known = [digest for one, digest in pairs if hmac.compare_digest(one, digest)]
        if not known:
            raise _unauthorized("This API key is not valid.", "invalid_api_key")
        return known[0]

    def _read_file(self, path: Path) -> None:
        try:
            status = path.stat()
            # The inode tells a replaced file from the old one where time and size are equal.
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if stamp == self._stamp:
                return
            digests = _digests(path.read_text("utf-8-sig"), str(path))
            if not digests:
                raise ConfigError(f"{path} has no SHA-256 digest: write one a line")
            self._from_file, self._stamp, self._complaint = digests, stamp, ""
        except (OSError, UnicodeDecodeError, ConfigError) as error:
            if self._stamp is None:
                raise ConfigError(f"the file of API keys cannot be read: {error}") from None
            # The file is being replaced, or is wrong. The keys read last stay valid; the error is logged once.
            if str(error) != self._complaint:
                self._complaint = str(error)
                logger.error("the file of API keys cannot be read, the keys read before stay valid: %s", error)


def _unauthorized(message: str, code: str) -> ApiError:
    headers = {"www-authenticate": "Bearer"}
    return ApiError(401, message, code=code, kind="authentication_error", headers=headers)


def _digests(text: str, source: str) -> frozenset[str]:
    lines = {line.strip().lower() for line in text.splitlines()} - {""}
    for line in lines:
        if len(line) != 64 or not _HEX.issuperset(line):
            # The error does not show the line, because it may be a key that was put there by mistake.
            raise ConfigError(f"{source}: every entry must be the 64 hex digits of a SHA-256 digest")
    return frozenset(lines)
