"""Waiting for storage that is away: try again with growing pauses, and give up after a deadline without progress."""

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
_SILENT_ATTEMPTS = 3  # a single broken connection is not news
_LOG = logging.getLogger(__name__)


class RetryPolicy:
    """Counts how long one operation has been in trouble. Progress makes it forget.

    Args:
        where: URI of the object, for the error.
        server: What does not answer, for the error.
    """

    def __init__(self, where: str, server: str) -> None:
        self._where, self._server = where, server
        self._deadline_s = storage_deadline_s()
        self._since: float | None = None
        self._attempts = 0
        self.was_tried = False
        """Whether an attempt failed ever: what it wrote may have arrived although its answer did not."""

    def progressed(self) -> None:
        """Start counting anew: bytes came."""
        self._since, self._attempts = None, 0

    def wait(self, error: Exception) -> None:
        """Pause before the next attempt.

        Raises:
            StorageError: The deadline has passed since the trouble began.
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


def retrying(patience: RetryPolicy, action: Callable[[], ResultT], is_passing: Callable[[Exception], bool]) -> ResultT:
    """Run an action until it succeeds or fails for good.

    Args:
        patience: Its deadline holds.
        action: Safe to repeat.
        is_passing: Tells an error that may pass (the server is away, the connection broke) from one that will not.

    Raises:
        StorageError: The deadline has passed.
    """
    while True:
        try:
            return action()
        except Exception as error:
            if not is_passing(error):
                raise
            patience.wait(error)
