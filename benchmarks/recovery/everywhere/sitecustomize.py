"""On the path of every process of a measured cluster: note 50 times a second whose code each thread is in.

A line is JSON: the moment, and for every thread whether it trains, and the owner of its innermost frame that is not the
standard library's: `warren` or an installed package. What C code does counts for who calls it.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from types import FrameType

_EVERY_S = 0.02
_INSTALLED = f"{os.sep}site-packages{os.sep}"
_WARREN = f"{os.sep}warren{os.sep}"  # in a checkout, or where Ray unpacked what the job brought


def owner_of(file: str) -> str | None:
    """Return whose a source file is; None for the standard library and the benchmarks."""
    if _INSTALLED in file:
        return file.rpartition(_INSTALLED)[2].partition(os.sep)[0].removesuffix(".py")
    return "warren" if _WARREN in file else None


def _look(frame: FrameType | None) -> tuple[bool, str]:
    owner, trains = None, False
    while frame is not None:
        owner = owner or owner_of(frame.f_code.co_filename)
        trains = trains or frame.f_code.co_name == "_train_on_this_rank"
        frame = frame.f_back
    return trains, owner or "python"


def _sample(folder: str) -> None:
    own = threading.get_ident()
    with Path(folder, f"{os.getpid()}.jsonl").open("a", buffering=1) as file:
        while True:
            time.sleep(_EVERY_S)
            threads = [_look(frame) for ident, frame in sys._current_frames().items() if ident != own]
            title = Path("/proc/self/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
            file.write(json.dumps([time.time(), title, threads]) + "\n")


if folder := os.environ.get("WARREN_BENCH_SAMPLES"):
    threading.Thread(target=_sample, args=(folder,), daemon=True).start()
