"""A watchdog that ends a training process without progress, after it has written the stack of every thread.

Ranks that wait for each other would wait for ever. Once they have ended, the cluster restarts them from the newest
checkpoint.
"""

import faulthandler
import os
import sys
import tempfile
import threading
import time
from contextlib import suppress
from types import TracebackType

from warren.errors import WarrenError
from warren.storage import Location

EXIT_CODE = 75  # EX_TEMPFAIL: starting again may help
_UPLOAD_TIMEOUT_S = 15.0


class Watchdog:
    """Watches this process while the context is open.

    Args:
        timeout_s: The longest time between two calls of `alive`.
        target: Where the stacks are written if storage answers; they are written to the process's log too.
    """

    def __init__(self, timeout_s: float, target: Location) -> None:
        self._timeout_s, self._target = timeout_s, target
        self._doing, self._since = "starting", time.monotonic()
        self._over = threading.Event()

    def alive(self, doing: str) -> None:
        """Report progress; `doing` says what begins now."""
        self._doing, self._since = doing, time.monotonic()

    def __enter__(self) -> "Watchdog":
        self.alive("starting")
        threading.Thread(target=self._watch, daemon=True, name="warren-watchdog").start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self._timeout_s / 4)):
            still_s = time.monotonic() - self._since
            if still_s > self._timeout_s:
                self._end(still_s)

    def _end(self, still_s: float) -> None:
        report = (
            f"no progress for {still_s:.0f} s (resources.hang_timeout_s={self._timeout_s:g}) while {self._doing}; "
            f"every thread of process {os.getpid()} stands here:\n\n{_stacks()}"
        )
        print(report, file=sys.stderr, flush=True)
        upload = threading.Thread(target=self._upload, args=(report,), daemon=True)  # storage may be what hangs
        upload.start()
        upload.join(_UPLOAD_TIMEOUT_S)
        os._exit(EXIT_CODE)

    def _upload(self, report: str) -> None:
        with suppress(WarrenError):
            self._target.create_bytes(report.encode())


def _stacks() -> str:
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read()
