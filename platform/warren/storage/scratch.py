"""Temporary folders that are removed even after a crash: each is locked, and the next process removes unlocked ones."""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "warren."  # of these folders only: other folders called warren… have no lock and must stay
_GRACE_S = 60.0  # a folder this young may not be locked yet


@contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """Give an empty temporary folder, and remove it afterwards.

    A killed process cannot remove its folder, but the kernel releases its lock. The next call, of any process, removes
    unlocked folders.

    Args:
        purpose: Part of the folder's name; keep it short, Unix sockets may lie below.
    """
    _remove_abandoned()
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{purpose}-"))
    with _opened(folder) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # in use, or removed meanwhile
            status = folder.lstat()
            if status.st_uid != os.getuid() or time.time() - status.st_ctime < _GRACE_S:
                continue
            with _opened(folder) as held:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
