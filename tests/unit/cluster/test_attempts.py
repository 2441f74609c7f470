"""Which ends of an attempt are worth another, out of which budget; and what a recovery is made of."""

from collections.abc import Callable

import pytest
from ray.exceptions import ActorDiedError

from warren.cluster.train.failure_policy import FailurePolicy
from warren.cluster.train.monitor import _recovery, recovered
from warren.errors import CheckpointError, TrainingError


def scripted(*ends: Exception | None) -> tuple[Callable[[], None], list[int]]:
    """Return an attempt that ends as told, one after the other, and the list that counts them."""
    told, counted = list(ends), []

    def attempt() -> None:
        counted.append(1)
        end = told.pop(0)
        if end is not None:
            raise end

    return attempt, counted


def attempts(attempt: Callable[[], None], complete_after: int, counted: list[int], **budget: int) -> FailurePolicy:
    budgets = {"max_failures": 1, "max_preemptions": 2, **budget}
    return FailurePolicy(attempt, lambda: len(counted) >= complete_after, lambda: None, **budgets)


def test_a_dead_controller_and_a_preemption_are_followed_by_another_attempt() -> None:
    attempt, counted = scripted(ActorDiedError(), None, None, None)
    attempts(attempt, 4, counted).run()
    assert len(counted) == 4


def test_failures_and_preemptions_have_budgets_of_their_own() -> None:
    attempt, counted = scripted(ActorDiedError(), None, ActorDiedError())
    with pytest.raises(TrainingError, match=r"controller died 2 times.*max_failures=1"):
        attempts(attempt, 9, counted).run()
    attempt, counted = scripted(None, None, None)
    with pytest.raises(TrainingError, match=r"gave way to 3 preemptions.*max_preemptions=2"):
        attempts(attempt, 9, counted).run()


def test_an_error_of_the_run_itself_is_not_tried_again() -> None:
    for error in (CheckpointError("two jobs"), ValueError("a bug")):
        attempt, counted = scripted(error)
        with pytest.raises(type(error)):
            attempts(attempt, 9, counted).run()
        assert len(counted) == 1


def test_a_recovery_is_split_without_a_gap() -> None:
    last, row = {"step": 7, "time": 100.0}, {"step": 5, "time": 117.5}
    split = _recovery(last, {"failed": 101.0, "entered": 110.0, "loaded": 114.0}, row)
    assert split["total_s"] == sum(split[f"{part}_s"] for part in ("detect", "restart", "load", "first_step"))
    assert recovered(split) == "back at step 5 after 17.5 s (detect 1.0, restart 9.0, load 4.0, first step 3.5)"
