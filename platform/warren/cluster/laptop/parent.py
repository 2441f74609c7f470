"""Services that end with the process that started them, also when that process is killed."""

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded here: little may happen between fork and exec


def end_with_parent() -> None:
    """For `preexec_fn`: let the kernel send SIGTERM to this process when the thread that started it ends."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
