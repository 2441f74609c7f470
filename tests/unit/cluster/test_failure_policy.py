"""Which ends of an attempt are worth another, out of which budget; and what a recovery is made of."""

from collections.abc import Callable

import pytest
from ray.exceptions import ActorDiedError

from warren.cluster.train.failure_policy import FailurePolicy
from warren.errors import CheckpointError, TrainingError
from warren.train.recovery_time import Recovery, recovery_table


def scripted(*ends: Exception | None) -> tuple[Callable[[], None], list[int]]:
    """Return an attempt whose calls end one after the other as `ends` says, and the list that counts them."""
    left, counted = list(ends), []

    def attempt() -> None:
        counted.append(1)
        end = left.pop(0)
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
    with pytest.raises(TrainingError, match=r"was preempted 3 times.*max_preemptions=2"):
        attempts(attempt, 9, counted).run()


def test_an_error_of_the_run_itself_is_not_tried_again() -> None:
    for error in (CheckpointError("two jobs"), ValueError("a bug")):
        attempt, counted = scripted(error)
        with pytest.raises(type(error)):
            attempts(attempt, 9, counted).run()
        assert len(counted) == 1


def test_a_recovery_is_split_without_a_gap() -> None:
    split = Recovery.between((7, 100.0), {"failed": 101.0, "started": 110.0, "loaded": 114.0}, (5, 117.5))
    assert split.total_s == split.detect_s + split.restart_s + split.load_s + split.first_step_s
    assert str(split) == "back at step 5 after 17.5 s (detect 1.0, restart 9.0, load 4.0, first step 3.5)"
    assert recovery_table([split]) == [
        "| last_step | next_step | detect_s | restart_s | load_s | first_step_s | total_s |",
        "|---|---|---|---|---|---|---|",
        "| 7 | 5 | 1 | 9 | 4 | 3.5 | 17.5 |",
    ]


def test_a_recovery_whose_failure_nobody_saw_counts_as_restart_and_load() -> None:
    split = Recovery.between((7, 100.0), {"loaded": 114.0}, (8, 115.0))
    assert (split.detect_s, split.restart_s, split.load_s, split.total_s) == (14.0, 0.0, 0.0, 15.0)
