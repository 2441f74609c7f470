"""Invariants 1 and 2: the order is a pure function, and resuming continues it exactly."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warren.config import MixtureComponent
from warren.data.mixture import Mixture, samples_per_epoch
from warren.data.order import Order, Plan, window_multiple
from warren.errors import ConfigError, EmptyDatasetError

Place = tuple[int, int, int, int]  # dataset, shard, row group, row
Groups = list[list[int]]

shards = st.lists(st.lists(st.integers(1, 20), min_size=1, max_size=6), min_size=1, max_size=6)
mixtures = st.lists(st.tuples(shards, st.integers(1, 150)), min_size=1, max_size=3)


def plan_of(datasets: list[Groups], counts: list[int] | None, seed: int, batch: int, window: int) -> Plan:
    order = Order(Mixture(datasets, seed, counts), window_multiple(window, batch))
    return Plan(order, batch, epochs=2)


def batches(plan: Plan, start: int = 0) -> list[list[Place]]:
    found = []
    for task in plan.tasks(start):
        places = [(s.dataset, s.shard, s.row_group) for s in task.slices]
        found += [[(*places[r.slice], r.row) for r in rows] for rows in task.batches(plan.global_batch_size)]
    return found


def everything(groups: Groups, dataset: int = 0) -> list[Place]:
    return [(dataset, s, g, r) for s, shard in enumerate(groups) for g, rows in enumerate(shard) for r in range(rows)]


@given(mixtures, st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 40))
@settings(deadline=None, max_examples=80)
def test_every_epoch_holds_of_every_dataset_what_was_promised(
    mixture: list[tuple[Groups, int]], seed: int, batch: int, window: int
) -> None:
    plan = plan_of([groups for groups, _ in mixture], [count for _, count in mixture], seed, batch, window)
    found = batches(plan)
    assert len(found) == plan.num_steps
    seen: Counter[Place] = Counter()
    for epoch in range(2):
        rows = [r for b in found[epoch * plan.steps_per_epoch : (epoch + 1) * plan.steps_per_epoch] for r in b]
        assert Counter(row[0] for row in rows) == {d: count for d, (_, count) in enumerate(mixture)}
        seen.update(rows)
        for dataset, (groups, count) in enumerate(mixture):
            passes, rest = divmod((epoch + 1) * count, len(everything(groups)))
            times = Counter(seen[place] for place in everything(groups, dataset))
            expected = Counter({passes: len(everything(groups)) - rest, passes + 1: rest})
            assert times == +expected  # no sample is ahead of another by more than one


@given(mixtures, st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 40), st.data())
@settings(deadline=None, max_examples=60)
def test_resuming_at_any_step_gives_the_same_rest(
    mixture: list[tuple[Groups, int]], seed: int, batch: int, window: int, data: st.DataObject
) -> None:
    arguments = ([groups for groups, _ in mixture], [count for _, count in mixture], seed, batch, window)
    plan = plan_of(*arguments)
    whole = batches(plan)
    step = data.draw(st.integers(0, plan.num_steps))
    assert batches(plan_of(*arguments), step) == whole[step:]
    firsts = [task.first_step for task in plan.tasks(step)]
    assert firsts == sorted(firsts)


def test_a_resumed_task_starts_inside_its_window() -> None:
    plan = plan_of([[[10, 10, 10]]], None, seed=1, batch=5, window=20)
    first = next(plan.tasks(3))
    assert (first.window, first.skip_batches, first.first_step, first.num_batches) == (0, 3, 3, 1)


def test_seed_and_epoch_change_the_order() -> None:
    groups = [[[16] * 8]]
    assert batches(plan_of(groups, None, 1, 8, 64)) != batches(plan_of(groups, None, 2, 8, 64))
    both = batches(plan_of(groups, None, 1, 8, 64))
    assert both[:16] != both[16:]


def test_the_order_is_the_one_written_down() -> None:
    """A change here changes what every run of a seed trains on: never by accident."""
    one = batches(plan_of([[[3, 3], [4]]], None, seed=7, batch=5, window=5))
    assert [place[1:] for rows in one[:2] for place in rows] == GOLDEN
    two = batches(plan_of([[[3, 3], [4]], [[5]]], [4, 6], seed=7, batch=5, window=5))
    assert [place for rows in two[:2] for place in rows] == GOLDEN_MIXTURE


def test_an_empty_dataset_has_no_order() -> None:
    with pytest.raises(EmptyDatasetError):
        Mixture([[]], 0)
    with pytest.raises(EmptyDatasetError):
        Mixture([[[3]], []], 0)


def test_steps_may_end_inside_an_epoch() -> None:
    order = Order(Mixture([[[10]]], 0), 12)
    assert [len(rows) for rows in batches(Plan(order, 4, num_steps=4))] == [4, 4, 2, 4]


def test_every_window_holds_its_share_of_a_small_dataset() -> None:
    """A tenth of text among images is a tenth of each window, not a run of text somewhere."""
    plan = plan_of([[[64] * 100] * 10, [[64] * 100]], None, seed=1, batch=32, window=4096)
    shares = [sum(s.num_rows for s in task.slices if s.dataset == 1) / 4096 for task in plan.tasks()][:16]
    assert np.mean(shares) == pytest.approx(1 / 11, rel=0.1)
    assert max(shares) < 0.2


def component(**share: float) -> MixtureComponent:
    return MixtureComponent(name="d@v1", **share)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("shares", "rows", "expected"),
    [
        ([{}, {"epochs": 2}, {"samples": 7}], [10, 10, 3], [10, 20, 7]),
        ([{"epochs": 0.1}, {"epochs": 0.29}], [1000, 100], [100, 29]),  # 0.29 × 100 in floats is 28.999…
        ([{"weight": 3}, {"weight": 1}], [600, 1000], [600, 200]),
        ([{"weight": 0.75}, {"weight": 0.25}], [1000, 100], [300, 100]),
    ],
)
def test_shares_become_counts(shares: list[dict[str, float]], rows: list[int], expected: list[int]) -> None:
    assert samples_per_epoch([component(**share) for share in shares], rows) == expected


def test_a_share_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'d@v1' \(10 samples\) would give no sample"):
        samples_per_epoch([component(epochs=0.01)], [10])


GOLDEN = [(0, 0, 2), (1, 0, 0), (1, 0, 1), (0, 0, 1), (0, 0, 0), (0, 1, 2), (0, 1, 0), (0, 1, 1), (1, 0, 2), (1, 0, 3)]
GOLDEN_MIXTURE = [
    *[(0, 1, 0, 2), (0, 1, 0, 3), (1, 0, 0, 0), (0, 1, 0, 1), (0, 1, 0, 0)],
    *[(1, 0, 0, 4), (1, 0, 0, 2), (1, 0, 0, 3), (1, 0, 0, 0), (1, 0, 0, 1)],
]
