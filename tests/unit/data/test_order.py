"""Invariants 1 and 2: the order is a pure function, and resuming continues it exactly."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warren.data.order import Order, Plan, RowRef, window_multiple
from warren.errors import EmptyDatasetError

datasets = st.lists(st.lists(st.integers(1, 20), min_size=1, max_size=6), min_size=1, max_size=6)


def plan_of(groups: list[list[int]], seed: int, batch: int, window: int, epochs: int = 2) -> Plan:
    order = Order(groups, seed, window_multiple(window, batch))
    return Plan(order, batch, epochs=epochs)


def batches(plan: Plan, start: int = 0) -> list[list[RowRef]]:
    return [rows for task in plan.tasks(start) for rows in plan.batches(task)]


@given(datasets, st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 40))
@settings(deadline=None, max_examples=60)
def test_every_epoch_holds_every_sample_once(groups: list[list[int]], seed: int, batch: int, window: int) -> None:
    plan = plan_of(groups, seed, batch, window)
    everything = {
        RowRef(s, g, r) for s, shard in enumerate(groups) for g, rows in enumerate(shard) for r in range(rows)
    }
    found = batches(plan)
    assert len(found) == plan.num_steps
    for epoch in range(2):
        rows = [r for b in found[epoch * plan.steps_per_epoch : (epoch + 1) * plan.steps_per_epoch] for r in b]
        assert len(rows) == len(everything)
        assert set(rows) == everything


@given(datasets, st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 40), st.data())
@settings(deadline=None, max_examples=60)
def test_resuming_at_any_step_gives_the_same_rest(
    groups: list[list[int]], seed: int, batch: int, window: int, data: st.DataObject
) -> None:
    plan = plan_of(groups, seed, batch, window)
    whole = batches(plan)
    step = data.draw(st.integers(0, plan.num_steps))
    assert batches(plan_of(groups, seed, batch, window), step) == whole[step:]
    firsts = [task.first_step for task in plan.tasks(step)]
    assert firsts == sorted(firsts)


def test_a_resumed_task_starts_inside_its_window() -> None:
    plan = plan_of([[10, 10, 10]], seed=1, batch=5, window=20)
    first = next(plan.tasks(3))
    assert (first.window, first.skip_batches, first.first_step, first.num_batches) == (0, 3, 3, 1)


def test_seed_and_epoch_change_the_order() -> None:
    groups = [[16] * 8]
    assert batches(plan_of(groups, 1, 8, 64)) != batches(plan_of(groups, 2, 8, 64))
    both = batches(plan_of(groups, 1, 8, 64))
    assert both[:16] != both[16:]


def test_the_order_is_the_one_written_down() -> None:
    """A change here changes what every run of a seed trains on: never by accident."""
    order = Order([[3, 3], [4]], seed=7, window_samples=5)
    flat = [(r.shard, r.row_group, r.row) for w in range(order.num_windows) for r in order.window(0, w)]
    assert flat == GOLDEN


def test_an_empty_dataset_has_no_order() -> None:
    with pytest.raises(EmptyDatasetError):
        Order([], 0, 8)


def test_steps_may_end_inside_an_epoch() -> None:
    order = Order([[10]], 0, 12)
    assert [len(rows) for rows in batches(Plan(order, 4, num_steps=4))] == [4, 4, 2, 4]


GOLDEN = [(0, 0, 2), (1, 0, 0), (1, 0, 1), (0, 0, 1), (0, 0, 0), (0, 1, 2), (0, 1, 0), (0, 1, 1), (1, 0, 2), (1, 0, 3)]
