"""Steps that would do harm: which ones are left out, and when a run that leaves out too many ends.

Everything is decided from figures that all ranks see alike and from the run's history, so all ranks decide alike, and a
resumed run decides as an unbroken one.
"""

import math
import statistics
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from warren.config import GuardConfig
from warren.errors import ConflictError, TrainingError
from warren.storage import Location

StepMetrics = dict[str, Any]
_SHOWN_KEYS = 8
_OVERFLOW = "the gradient overflowed fp16"


def overflow(loss_scale: float) -> str:
    """Say that a step was left out because its gradient, times the loss scale, is beyond fp16.

    That is how the scale finds its place: such steps do not count as skips in a row, and the engine ends a run whose
    scale cannot become smaller.
    """
    return f"{_OVERFLOW} at a loss scale of {loss_scale:g}"


@dataclass
class Guard:
    """Watches a run's losses.

    Attributes:
        folder: Where the samples of steps that were left out are written down, beside the run.
    """

    config: GuardConfig
    folder: Location
    _losses: deque[float] = field(init=False)
    _skips_in_a_row: int = 0

    def __post_init__(self) -> None:
        self._losses = deque(maxlen=self.config.spike_window_steps)

    def follow(self, history: Iterable[StepMetrics]) -> None:
        """Take note of the steps that were trained before."""
        for row in history:
            self._note(row["loss"], row.get("skipped", ""))

    def objection(self, loss: float) -> str:
        """Say why a step of this loss should be left out; empty if it should not."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        factor, full = self.config.spike_factor, len(self._losses) == self._losses.maxlen
        if factor is not None and full and loss > factor * (median := statistics.median(self._losses)):
            return f"the loss is {loss:.4g}, over {factor:g} times the median {median:.4g} of the steps before it"
        return ""

    def judge(self, row: StepMetrics, keys: Sequence[str], writes: bool) -> None:
        """Take note of a step, and write it down if it was left out.

        Args:
            row: The step's metrics; `skipped` is why it was left out, or empty.
            keys: The samples of its global batch.
            writes: Whether this rank writes.

        Raises:
            TrainingError: Too many steps in a row were left out.
        """
        self._note(row["loss"], row["skipped"])
        if not row["skipped"]:
            return
        target = self.folder / f"{row['step']:08d}.json"
        if writes:
            with suppress(ConflictError):  # an earlier attempt came this far, and left out the same step
                target.create_json({**row, "loss": str(row["loss"]), "grad_norm": str(row["grad_norm"]), "keys": keys})
        if self._skips_in_a_row > self.config.max_skips_in_a_row:
            raise TrainingError(
                f"{self._skips_in_a_row} steps in a row were left out, more than guard.max_skips_in_a_row="
                f"{self.config.max_skips_in_a_row}; at step {row['step']} {row['skipped']}. Its samples are in "
                f"{target} ({', '.join(keys[:_SHOWN_KEYS])}, …): look at them; raise guard.max_skips_in_a_row to go "
                "on, or lower the learning rate in a new run (--run)"
            )

    def _note(self, loss: float, skipped: str) -> None:
        if skipped.startswith(_OVERFLOW):
            return
        if skipped:
            self._skips_in_a_row += 1
        else:
            self._skips_in_a_row = 0
            self._losses.append(loss)
