"""Intervals cover what they say, and comparisons find what is there."""

import json
from typing import Any

import numpy as np
import pytest
from test_benchmarks import CASES, scored

from warren.errors import DataError
from warren.evaluate import statistics
from warren.evaluate.measures import Measure, blocks, mean, share, summed
from warren.evaluate.score_answers import measures_of
from warren.evaluate.score_formatting import numbers

SIMULATIONS = 1_500


def test_the_wilson_interval_is_what_it_is_elsewhere() -> None:
    """As `proportion_confint(method="wilson")` of statsmodels 0.15.0 gives."""
    for right, total, low, high in ((8, 10, 0.4901624715, 0.9433178485), (0, 20, 0.0, 0.1611251581)):
        found = statistics.wilson(right, total)
        assert found.low == pytest.approx(low, abs=1e-9)
        assert found.high == pytest.approx(high, abs=1e-9)
    assert (statistics.wilson(0, 0).low, statistics.wilson(0, 0).high) == (0.0, 1.0)


def test_mcnemars_mid_p_is_the_binomials() -> None:
    """Mid-p of 1 and 7 is 2 (1 + 8) / 256 - 8 / 256 = 10 / 256, by hand."""
    assert statistics.mcnemar(1, 7) == statistics.mcnemar(7, 1) == pytest.approx(10 / 256, abs=1e-12)
    assert statistics.mcnemar(0, 0) == statistics.mcnemar(5, 5) == 1.0
    assert statistics.mcnemar(2000, 2200) == pytest.approx(0.00203, abs=1e-4)


def test_holms_correction() -> None:
    """As `multipletests(method="holm")` of statsmodels 0.15.0 gives."""
    assert statistics.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert statistics.holm([]) == []


def clusters(generator: np.random.Generator, size: int, spread: float) -> tuple[Any, list[str]]:
    """Return points of questions, of which up to five share an image, and what their clusters are."""
    counts = generator.integers(1, 6, size)
    levels = np.clip(0.6 + spread * generator.standard_normal(size), 0, 1)
    points = generator.binomial(3, np.repeat(levels, counts)) / 3
    return points, [str(n) for n in np.repeat(np.arange(size), counts)]


def test_wilson_intervals_cover_the_truth_in_95_percent_of_simulations() -> None:
    generator = np.random.default_rng(1)
    covered = []
    for _ in range(SIMULATIONS * 2):
        truth, size = generator.uniform(0.05, 0.95), int(generator.integers(50, 1_000))
        interval = statistics.wilson(int(generator.binomial(size, truth)), size)
        covered.append(interval.low <= truth <= interval.high)
    assert 0.94 <= np.mean(covered) <= 0.96


@pytest.mark.parametrize(("size", "simulations"), [(30, 1_500), (120, 500)])
def test_bootstrap_intervals_cover_the_truth_in_95_percent_of_simulations(
    size: int, simulations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics.resample, "__defaults__", (499,))
    generator = np.random.default_rng(2)
    truth = _true_mean()
    covered, naive = [], []
    for number in range(simulations):
        points, of = clusters(generator, size, 0.3)
        sums = np.stack([points, np.ones_like(points)], axis=1)
        found = statistics.bootstrap(sums, of, _ratio, seed=number)
        assert found is not None
        covered.append(found.low <= truth <= found.high)
        half = 1.96 * points.std(ddof=1) / len(points) ** 0.5
        naive.append(abs(points.mean() - truth) <= half)
    assert 0.94 <= np.mean(covered) <= 0.96
    assert np.mean(naive) < 0.93, "questions about one image are not independent"


def _true_mean() -> float:
    """Return the mean of the clipped normal levels, by integration."""
    draws = np.clip(0.6 + 0.3 * statistics.stats.norm.ppf((np.arange(100_000) + 0.5) / 100_000), 0, 1)
    return float(draws.mean())


def _ratio(sums: Any) -> Any:
    return sums[..., 0] / sums[..., 1]


def test_intervals_of_differences_cover_the_truth_and_the_smallest_difference_is_found() -> None:
    generator = np.random.default_rng(3)
    covered, significant = [], []
    size, both, only_first, only_second = 400, 0.5, 0.12, 0.2
    detectable = statistics.compare_shares(*_pair(generator, 4_000, both, only_first, only_second))
    assert detectable.smallest_detectable == pytest.approx(2.8 * (0.3136 / 4_000) ** 0.5, rel=0.1)
    for _ in range(SIMULATIONS):
        found = statistics.compare_shares(*_pair(generator, size, both, only_first, only_second))
        covered.append(found.interval.low <= only_second - only_first <= found.interval.high)
        significant.append(found.p_value < 0.05)
    assert 0.94 <= np.mean(covered) <= 0.96
    assert 0.76 <= np.mean(significant) <= 0.86, "0.08 is about the smallest detectable difference of 400 questions"
    same = (_pair(generator, size, both, 0.15, 0.15) for _ in range(SIMULATIONS))
    false = [statistics.compare_shares(*pair).p_value < 0.05 for pair in same]
    assert 0.035 <= np.mean(false) <= 0.065


def _pair(
    generator: np.random.Generator, size: int, both: float, first: float, second: float
) -> tuple[list[bool], list[bool]]:
    drawn = generator.choice(4, size, p=[both, first, second, 1 - both - first - second])
    return list((drawn == 0) | (drawn == 1)), list((drawn == 0) | (drawn == 2))


def test_a_paired_bootstrap_sees_less_noise_than_two_runs_apart() -> None:
    generator = np.random.default_rng(4)
    points, of = clusters(generator, 200, 0.3)
    better = np.clip(points + (generator.random(len(points)) < 0.1) / 3, 0, 1)
    keys = [str(n) for n in range(len(points))]
    images = dict(zip(keys, of, strict=True))
    first, second = (mean("m", dict(zip(keys, values, strict=True)), 100, images) for values in (points, better))
    found = first.compare(second)
    assert found is not None
    assert found.p_value < 0.01
    assert found.interval.low < found.difference < found.interval.high
    alone = first.interval()
    assert alone is not None
    assert found.interval.high - found.interval.low < alone.high - alone.low
    same = first.compare(first)
    assert same is not None
    assert (same.difference, same.p_value) == (0.0, 1.0)


def test_the_same_answers_have_the_same_interval_in_any_order() -> None:
    values = {str(n): n % 7 / 7 for n in range(300)}
    turned = dict(sorted(values.items(), key=lambda item: item[0]))
    assert mean("m", values).interval() == mean("m", values).interval()
    assert mean("m", values).interval() == mean("m", turned).interval()


def test_few_questions_and_few_clusters() -> None:
    assert mean("m", {"a": 0.5}).interval() is None
    assert mean("m", {"a": 0.5, "b": 1.0}, clusters={"a": "x", "b": "x"}).interval() is None
    one = share("s", {"a": True}, 100).interval()
    assert one is not None
    assert one.low == pytest.approx(20.65, abs=0.01)
    assert (one.high, one.method) == (100.0, "wilson")


def test_measures_survive_json_and_what_is_none_is_named() -> None:
    parts = [{"a": (1.0, 0.0, 0.0), "b": (0.0, 1.0, 0.0)}, {"c": (1.0, 0.0, 1.0)}]
    for measure in (share("s", {"a": True, "b": False}), summed("f", "mean_f1", blocks(parts), 1, {"a": "x"})):
        again = Measure.from_json(json.loads(json.dumps(measure.to_json())))
        assert (again.value, again.interval(), again.clusters) == (measure.value, measure.interval(), measure.clusters)
    for broken in (
        {},
        {**share("s", {"a": True}).to_json(), "statistic": "x"},
        {**share("s", {"a": True}).to_json(), "keys": []},
    ):
        with pytest.raises(DataError, match="not a measure"):
            Measure.from_json(broken)
    with pytest.raises(DataError, match="has no measures; score again"):
        measures_of({"scores": {}})
    with pytest.raises(DataError, match=r"different questions \(2 are only in one\)"):
        share("s", {"a": True}).compare(share("s", {"b": True}))


@pytest.mark.parametrize("name", ["mme", "pope", "scienceqa", "seed", "gqa", "mmmu", "cmmmu", "textvqa"])
def test_every_measure_is_a_number_of_the_scores(name: str) -> None:
    report = scored(name)
    values = dict(numbers(report["scores"]))
    found = measures_of(report)
    assert found
    for measure in found:
        exact = 5.1e-4 if name == "mmmu" else 1e-9  # its table is rounded
        assert measure.value == pytest.approx(values[measure.name], abs=exact), (name, measure.name)
    assert CASES[name]
