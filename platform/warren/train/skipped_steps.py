"""Skipped steps: which steps would harm the model and are left out, and how many in a row end the run.

Decisions depend only on metrics that are the same on all ranks and on the run's history. So all ranks decide alike, and
a resumed run decides like an uninterrupted one.
"""

import math
import statistics
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from warren.config import GuardConfig
from warren.errors import ConflictError, TrainingError
from warren.storage import Location
from warren.train.step_metrics import StepMetrics

_SHOWN_KEYS = 8


def gradient_objection(grad_norm: float, loss_scale: float | None) -> str:
    """Return why a step with this gradient is left out, or an empty text.

    Args:
        grad_norm: The gradient's norm before clipping.
        loss_scale: The loss scale in fp16, else None.
    """
    if math.isfinite(grad_norm):
        return ""
    if loss_scale is None:
        return f"the gradient norm is {grad_norm}"
    return f"the gradient overflowed fp16 at a loss scale of {loss_scale:g}"


@dataclass
class Guard:
    """Decides which steps of a run are left out, by the losses so far.

    Attributes:
        folder: Where the keys of the samples of skipped steps are written.
    """

    config: GuardConfig
    folder: Location
    _losses: deque[float] = field(init=False)
    _skips_in_a_row: int = 0

    def __post_init__(self) -> None:
        self._losses = deque(maxlen=self.config.spike_window_steps)

    def follow(self, history: Iterable[StepMetrics]) -> None:
        """Add the steps of earlier attempts."""
        for row in history:
            self._count(row)

    def objection(self, loss: float) -> str:
        """Return why a step with this loss must be left out, or an empty text."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        factor, full = self.config.spike_factor, len(self._losses) == self._losses.maxlen
        if factor is not None and full and loss > factor * (median := statistics.median(self._losses)):
            return f"the loss is {loss:.4g}, over {factor:g} times the median {median:.4g} of the steps before it"
        return ""

    def judge(self, row: StepMetrics, keys: Sequence[str], writes: bool) -> None:
        """Count a step, and write its samples if it was left out.

        Args:
            row: The step's metrics.
            keys: Keys of the samples of its global batch.
            writes: Whether this rank writes the file.

        Raises:
            TrainingError: Too many steps in a row were left out.
        """
        self._count(row)
        if not row["skipped"]:
            return
        target = self.folder / f"{row['step']:08d}.json"
        if writes:
            with suppress(ConflictError):  # an earlier attempt left out the same step
                target.create_json({**row, "loss": str(row["loss"]), "grad_norm": str(row["grad_norm"]), "keys": keys})
        if self._skips_in_a_row > self.config.max_skips_in_a_row:
            raise TrainingError(
                f"{self._skips_in_a_row} steps in a row were left out, more than guard.max_skips_in_a_row="
                f"{self.config.max_skips_in_a_row}; at step {row['step']} {row['skipped']}. Its samples are in "
                f"{target} ({', '.join(keys[:_SHOWN_KEYS])}, …): look at them; raise guard.max_skips_in_a_row to go "
                "on, or lower the learning rate in a new run (--run)"
            )

    def _count(self, row: StepMetrics) -> None:
        if not row.get("skipped"):
            self._skips_in_a_row = 0
            self._losses.append(row["loss"])
        elif not self._is_overflow(row):
            self._skips_in_a_row += 1

    def _is_overflow(self, row: StepMetrics) -> bool:
        """Return whether a step was left out only because its scaled gradient was too large for fp16.

        The dynamic loss scale finds its value by such overflows, so they do not count as skips in a row. The engine
        ends a run whose scale cannot become smaller.
        """
        return "loss_scale" in row and not math.isfinite(row["grad_norm"]) and not self.objection(row["loss"])
