"""Which steps are left out because they would harm the model, and when a run that leaves out too many ends.

Everything is decided from metrics that are the same on all ranks and from the run's history. So all ranks decide alike,
and a resumed run decides as an unbroken one does.
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
    """Return why a step with this gradient is left out; empty if it is not.

    Args:
        grad_norm: Before clipping.
        loss_scale: In fp16.
    """
    if math.isfinite(grad_norm):
        return ""
    if loss_scale is None:
        return f"the gradient norm is {grad_norm}"
    return f"the gradient overflowed fp16 at a loss scale of {loss_scale:g}"


@dataclass
class Guard:
    """Watches a run's losses.

    Attributes:
        folder: Where the samples of the steps that were left out are written, beside the run.
    """

    config: GuardConfig
    folder: Location
    _losses: deque[float] = field(init=False)
    _skips_in_a_row: int = 0

    def __post_init__(self) -> None:
        self._losses = deque(maxlen=self.config.spike_window_steps)

    def follow(self, history: Iterable[StepMetrics]) -> None:
        """Take the steps that were trained before this attempt."""
        for row in history:
            self._count(row)

    def objection(self, loss: float) -> str:
        """Return why a step with this loss must be left out; empty if it must not."""
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
            keys: The samples of its global batch.
            writes: Whether this rank writes.

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

        That is how the loss scale is found: such steps are no skips in a row, and the engine ends a run whose scale
        cannot become smaller.
        """
        return "loss_scale" in row and not math.isfinite(row["grad_norm"]) and not self.objection(row["loss"])
