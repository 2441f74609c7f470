"""Services that end with the process that started them, also when that process is killed."""

import ctypes
import signal
import sys
import threading
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded here: little may happen between fork and exec


def ending_with_parent() -> Callable[[], None] | None:
    """Return a `preexec_fn` that ends the new process with this one.

    The kernel watches the thread that starts a process, not the whole process. A service that another thread than the
    main one starts must not end with that thread, so it does without.
    """
    is_main = threading.current_thread() is threading.main_thread()
    return _ask_for_signal if is_main and _libc is not None else None


def _ask_for_signal() -> None:
    assert _libc is not None
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
