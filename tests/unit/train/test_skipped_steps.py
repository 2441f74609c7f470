"""Which steps that were left out count against the run."""

import math
from pathlib import Path
from typing import Any

import pytest

from warren.config import GuardConfig
from warren.errors import TrainingError
from warren.storage import Location
from warren.train.skipped_steps import Guard, gradient_objection


def row(step: int, loss: float = 1.0, grad_norm: float = 1.0, **more: Any) -> Any:
    return {"step": step, "loss": loss, "grad_norm": grad_norm, "skipped": "", **more}


def overflowed(step: int, loss_scale: float = 4096.0, **more: Any) -> Any:
    skipped = gradient_objection(math.inf, loss_scale)
    return row(step, grad_norm=math.inf, loss_scale=loss_scale, skipped=skipped, **more)


def test_a_loss_scale_may_look_for_its_place_but_harm_still_ends_the_run(tmp_path: Path) -> None:
    folder = Location.parse(str(tmp_path))
    guard = Guard(GuardConfig(max_skips_in_a_row=1), folder)
    for step in range(4):
        guard.judge(overflowed(step, 2.0 ** (16 - step)), ["a"], writes=True)
    assert len(folder.list()) == 4  # written down all the same
    guard.judge(row(4, math.nan, loss_scale=4096.0, skipped="the loss is nan"), ["a"], writes=True)
    guard.judge(overflowed(5), ["a"], writes=True)
    with pytest.raises(TrainingError, match="2 steps in a row"):
        guard.judge(row(6, math.nan, loss_scale=4096.0, skipped="the loss is nan"), ["a"], writes=True)


HARM = [
    row(9, math.nan, math.nan, skipped="the loss is nan"),
    row(9, math.nan, math.inf, loss_scale=8.0, skipped="the loss is nan"),
    row(9, 50.0, math.inf, loss_scale=8.0, skipped="the loss is 50, over 3 times the median 1 of the steps before it"),
    row(9, 50.0, 2.0, loss_scale=8.0, skipped="the loss is 50, over 3 times the median 1 of the steps before it"),
    row(9, 1.0, math.inf, skipped="the gradient norm is inf"),
]


@pytest.mark.parametrize("last", HARM)
@pytest.mark.parametrize("resumes", [False, True])
def test_what_a_step_measured_decides_whether_it_did_harm_before_and_after_a_restart(
    tmp_path: Path, last: Any, resumes: bool
) -> None:
    config = GuardConfig(spike_factor=3.0, spike_window_steps=2, max_skips_in_a_row=1)
    guard = Guard(config, Location.parse(str(tmp_path)))
    history: list[Any] = [row(0), row(1), overflowed(2), {**last, "step": 3}]
    if resumes:
        guard.follow(history)
    else:
        for each in history:
            guard.judge(each, ["a"], writes=False)
    guard.judge(overflowed(4), ["a"], writes=False)
    again: Any = {**last, "step": 5}
    with pytest.raises(TrainingError, match="2 steps in a row"):
        guard.judge(again, ["a"], writes=False)


def test_a_gradient_that_is_not_finite_is_named_by_its_precision() -> None:
    assert gradient_objection(1.5, None) == gradient_objection(1.5, 8.0) == ""
    assert gradient_objection(math.nan, None) == "the gradient norm is nan"
    assert gradient_objection(math.inf, 65536.0) == "the gradient overflowed fp16 at a loss scale of 65536"
