"""API keys: only their SHA-256 digests are known here, and they rotate without a restart."""

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
    """The digests of the keys that may ask. Without any source every request is let in.

    Args:
        settings: Names the variable or the file.

    Raises:
        ConfigError: A source was named and holds no digests: serving openly then would be a mistake.
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
            raise ConfigError(f"API keys are asked for, but {sources} hold no SHA-256 digest")

    @property
    def is_closed(self) -> bool:
        """Whether a key is needed at all."""
        return self._variable is not None or self._path is not None

    def check(self, authorization: str | None) -> str:
        """Let a request in by its `Authorization` header; returns the key's digest, or `anonymous`.

        Raises:
            ApiError: 401; no key, or an unknown one.
        """
        if not self.is_closed:
            return ANONYMOUS
        if self._path:
            self._read_file(self._path)
        scheme, _, key = (authorization or "").partition(" ")
        key = key.strip(" \t")  # no more: in UTF-8, bytes that Latin-1 takes for spaces are parts of letters
        if scheme.lower() != "bearer" or not key:
            raise _unauthorized("An API key is needed: Authorization: Bearer KEY.", "missing_api_key")
        # Starlette reads headers as Latin-1: a client sent the key in UTF-8, whose digest is that of the header's own
        # bytes, or in Latin-1, as some do.
        given = [digest_bytes(key.encode(coding, "replace")) for coding in ("latin-1", "utf-8")]
        # Every digest is compared, in constant time: the answer's time tells nothing.
        pairs = [(one, digest) for one in given for digest in self._from_env | self._from_file]
        known = [digest for one, digest in pairs if hmac.compare_digest(one, digest)]
        if not known:
            raise _unauthorized("This API key is not valid.", "invalid_api_key")
        return known[0]

    def _read_file(self, path: Path) -> None:
        try:
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if stamp == self._stamp:
                return
            found = _digests(path.read_text("utf-8-sig"), str(path))
            if not found:
                raise ConfigError(f"{path} holds no SHA-256 digest")
            self._from_file, self._stamp, self._complaint = found, stamp, ""
        except (OSError, UnicodeDecodeError, ConfigError) as error:
            if self._stamp is None:
                raise ConfigError(f"the file of API keys cannot be read: {error}") from None
            # It is being replaced, or was written wrongly: the keys read last stay valid. Logged once, not per request.
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
            # The line itself is not shown: it may be a key that was put there by mistake.
            raise ConfigError(f"{source}: every entry must be the 64 hex digits of a SHA-256 digest")
    return frozenset(lines)
