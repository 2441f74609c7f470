"""How long a run took to train on after its workers were lost, and which part of the restart took how long."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Literal

from warren.train.run import Run

AttemptEvent = Literal["failed", "started", "loaded"]
"""What the run monitor records of an attempt: its workers were lost, are back, have loaded the checkpoint."""


@dataclass(frozen=True)
class Recovery:
    """The time from the last step before a failure to the first step after it, in parts without a gap.

    Attributes:
        last_step: The newest step that was reported before the failure.
        next_step: The first step after it; steps since the checkpoint are trained again.
        detect_s: Until the failure was noticed.
        restart_s: Until new workers had started.
        load_s: Until they had loaded the checkpoint.
        first_step_s: Until their first step was trained.
        total_s: All of it.
    """

    last_step: int
    next_step: int
    detect_s: float
    restart_s: float
    load_s: float
    first_step_s: float
    total_s: float

    @classmethod
    def between(
        cls, last: tuple[int, float], events: dict[AttemptEvent, float], first: tuple[int, float]
    ) -> "Recovery":
        """Split the time between two steps.

        Args:
            last: Number and time of the last step before the failure.
            events: When each happened. `loaded` must be there; an event that nobody recorded takes no time.
            first: Number and time of the first step after it.
        """
        (last_step, stopped), (next_step, trained) = last, first
        loaded = events["loaded"]
        started = events.get("started", loaded)
        failed = events.get("failed", started)
        return cls(
            last_step=last_step,
            next_step=next_step,
            detect_s=failed - stopped,
            restart_s=started - failed,
            load_s=loaded - started,
            first_step_s=trained - loaded,
            total_s=trained - stopped,
        )

    def __str__(self) -> str:
        """Return one line for the run's log."""
        return (
            f"back at step {self.next_step} after {self.total_s:.1f} s (detect {self.detect_s:.1f}, restart "
            f"{self.restart_s:.1f}, load {self.load_s:.1f}, first step {self.first_step_s:.1f})"
        )


def write_recoveries(run: Run, recoveries: Sequence[Recovery]) -> None:
    """Write the recoveries of one job below `recoveries/` of the run's folder; a job without any writes nothing."""
    if recoveries:
        target = run.folder / "recoveries" / f"{int(time.time())}.json"
        target.create_json([asdict(recovery) for recovery in recoveries])


def recovery_table(recoveries: Sequence[Recovery]) -> list[str]:
    """Return the lines of a Markdown table with one row for each recovery."""
    columns = [field.name for field in fields(Recovery)]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return lines + [f"| {' | '.join(f'{value:.4g}' for value in asdict(each).values())} |" for each in recoveries]
