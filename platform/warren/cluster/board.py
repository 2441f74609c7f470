"""The board: where a run's rank 0 pins each step's metrics, and any rank the error that ends the run."""

import sys
import threading
import time
from typing import Any

import ray
from tqdm import tqdm

from warren.errors import WarrenError

_POLL_S = 1.0
_LINE_EVERY_S = 10.0


@ray.remote(num_cpus=0)
class Board:
    """Holds what the driver shows. Writers never wait for it."""

    def __init__(self) -> None:
        self._row: dict[str, Any] = {}
        self._error: WarrenError | None = None

    def pin(self, row: dict[str, Any]) -> None:
        """Replace the newest metrics."""
        self._row = row

    def fail(self, error: WarrenError) -> None:
        """Pin the first error that ends the run."""
        self._error = self._error or error

    def look(self) -> dict[str, Any]:
        """Return the newest metrics."""
        return self._row

    def error(self) -> WarrenError | None:
        """Return the error that ends the run, if any."""
        return self._error


class Progress:
    """Shows a run's progress while the driver waits: a bar on a terminal, a line now and then in a log."""

    def __init__(self, board: Any, title: str, num_steps: int) -> None:
        self._board, self._title, self._num_steps = board, title, num_steps
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> "Progress":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=5)

    def _show(self) -> None:
        terminal = sys.stderr.isatty()
        first: int | None = None
        printed = 0.0
        began = time.monotonic()
        with tqdm(total=self._num_steps, desc=self._title, unit="step", disable=not terminal) as bar:
            while not self._stop.wait(_POLL_S):
                row = ray.get(self._board.look.remote())
                if not row:
                    continue
                if first is None:
                    first, began = row["step"], time.monotonic()
                    bar.initial = bar.n = first
                bar.n = row["step"] + 1
                bar.set_postfix(loss=f"{row['loss']:.3f}", refresh=True)
                if not terminal and time.monotonic() - printed > _LINE_EVERY_S:
                    printed = time.monotonic()
                    print(self._line(row, first, printed - began), file=sys.stderr, flush=True)

    def _line(self, row: dict[str, Any], first: int, elapsed_s: float) -> str:
        steps = row["step"] - first
        rate = steps / elapsed_s if steps and elapsed_s else 0.0
        left = f"{(self._num_steps - row['step'] - 1) / rate:4.0f} s left" if rate else "starting"
        return (
            f"{self._title}: step {row['step'] + 1}/{self._num_steps}  loss {row['loss']:.4f}  "
            f"lr {row['learning_rate']:.1e}  {rate * row['samples']:.0f} samples/s  {left}"
        )
