"""Which steps that were left out count against the run."""

from pathlib import Path
from typing import Any

import pytest

from warren.config import GuardConfig
from warren.errors import TrainingError
from warren.storage import Location
from warren.train.guards import Guard, overflow


def row(step: int, skipped: str) -> dict[str, Any]:
    return {"step": step, "loss": 1.0, "grad_norm": 1.0, "skipped": skipped}


def test_a_loss_scale_may_look_for_its_place_but_harm_still_ends_the_run(tmp_path: Path) -> None:
    folder = Location.parse(str(tmp_path))
    guard = Guard(GuardConfig(max_skips_in_a_row=1), folder)
    for step in range(4):
        guard.judge(row(step, overflow(2.0 ** (16 - step))), ["a"], writes=True)
    assert len(folder.list()) == 4  # written down all the same
    guard.judge(row(4, "the loss is nan"), ["a"], writes=True)
    guard.judge(row(5, overflow(4096.0)), ["a"], writes=True)
    with pytest.raises(TrainingError, match="2 steps in a row"):
        guard.judge(row(6, "the loss is nan"), ["a"], writes=True)
