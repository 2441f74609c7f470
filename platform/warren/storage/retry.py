"""Retries with exponential backoff, until a deadline has passed without progress.

Why not tenacity: docs/adr/0007-storage-is-boto3-and-pyarrow-for-now.md.
"""

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from warren.config.environment import STORAGE_DEADLINE_VARIABLE, storage_deadline_s
from warren.errors import StorageError

ResultT = TypeVar("ResultT")
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
_SILENT_ATTEMPTS = 3  # failures before the warning: single broken connections are normal
_LOG = logging.getLogger(__name__)


class RetryPolicy:
    """The retries of one operation: failed attempts, and the time since the last progress.

    Args:
        where: URI of the object, for the error.
        server: URL of the server, for the error.
    """

    def __init__(self, where: str, server: str) -> None:
        self._where, self._server = where, server
        self._deadline_s = storage_deadline_s()
        self._since: float | None = None
        self._attempts = 0
        self.was_tried = False
        """Whether any attempt failed: its write may have arrived although its response was lost."""

    def progressed(self) -> None:
        """Reset the deadline and the pauses, because bytes arrived."""
        self._since, self._attempts = None, 0

    def wait(self, error: Exception) -> None:
        """Pause before the next attempt.

        Raises:
            StorageError: The deadline has passed since the last progress.
        """
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        self._attempts += 1
        self.was_tried = True
        pause = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(self._attempts - 1, 10)) * random.uniform(0.5, 1.0)
        if now + pause - self._since > self._deadline_s:
            raise StorageError(
                f"{self._where}: no answer from {self._server} within {self._deadline_s:g} s ({self._attempts} "
                f"attempts, the last: {error}): check the server and AWS_ENDPOINT_URL, or wait longer with "
                f"{STORAGE_DEADLINE_VARIABLE}"
            ) from None
        if self._attempts == _SILENT_ATTEMPTS:
            _LOG.warning("%s: %s; trying again for up to %g s", self._where, error, self._deadline_s)
        time.sleep(pause)


def retrying(policy: RetryPolicy, action: Callable[[], ResultT], is_transient: Callable[[Exception], bool]) -> ResultT:
    """Run an action until it succeeds or fails for good.

    Args:
        policy: Its deadline holds.
        action: Safe to repeat.
        is_transient: Tells an error that may pass (the server is away, the connection broke) from one that will not.

    Raises:
        StorageError: The deadline has passed.
    """
    while True:
        try:
            return action()
        except Exception as error:
            if not is_transient(error):
                raise
            policy.wait(error)
