"""How sure a score is, and whether two runs differ: intervals, paired comparisons, correction for many of them.

A share of right answers has a Wilson interval (Wilson 1927). Everything else is bootstrapped over clusters: questions
about one image are not independent, so images are drawn, not questions.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]
"""Computes a score from sums over questions; sums are the last axis."""

CONFIDENCE = 0.95
POWER = 0.8
SEED = 20_260_101
NUM_RESAMPLES = 2_000
_CHUNK_VALUES = 1 << 22  # weights held at a time
_MIN_CLUSTERS = 2


@dataclass(frozen=True)
class Interval:
    """A 95 % confidence interval and how it was made: `wilson` or `bootstrap`."""

    low: float
    high: float
    method: str


@dataclass(frozen=True)
class Comparison:
    """One score of two runs on the same questions.

    Attributes:
        difference: The second run's score minus the first's.
        interval: Of the difference.
        p_value: Of the hypothesis that the runs do not differ.
        smallest_detectable: The difference that these questions would show in four of five repetitions (80 % power).
        test: `mcnemar` or `bootstrap`.
    """

    difference: float
    interval: Interval
    p_value: float
    smallest_detectable: float
    test: str


def wilson(num_right: float, num_questions: int) -> Interval:
    """Return the Wilson interval of a share; without questions it is 0 to 1."""
    if num_questions == 0:
        return Interval(0.0, 1.0, "wilson")
    z, n = _z(), num_questions
    p = num_right / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n * n)) / (1 + z**2 / n)
    return Interval(max(0.0, centre - half), min(1.0, centre + half), "wilson")


def bootstrap(components: Array, clusters: Sequence[str], statistic: Statistic, seed: int = SEED) -> Interval | None:
    """Return the expanded percentile interval of a statistic of sums; None for fewer than two clusters.

    The percentiles lie further out than 2.5 and 97.5 for few clusters, as a t interval's limits lie further out than a
    normal one's: without that the interval is too narrow (Hesterberg 2015, section 5.3).

    Args:
        components: What each question adds to the sums, (questions, sums).
        clusters: What each question shares with others; whole clusters are drawn.
        statistic: The score as a function of the sums.
        seed: Of the draws; the same seed gives the same interval.
    """
    sums = _sum_clusters(components, clusters)
    if len(sums) < _MIN_CLUSTERS:
        return None
    return _percentiles(statistic(resample(sums, seed)), len(sums))


def compare_shares(first: ArrayLike, second: ArrayLike) -> Comparison:
    """Compare two shares on the same questions: McNemar's mid-p test, and the interval of Bonett and Price (2012)."""
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    n, gained, lost = len(a), int((~a & b).sum()), int((a & ~b).sum())
    # Bonett and Price add one question to each kind of change, which keeps the interval sound for few changes.
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    error = math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    interval = Interval(max(-1.0, up - down - _z() * error), min(1.0, up - down + _z() * error), "bonett-price")
    return Comparison((gained - lost) / max(n, 1), interval, mcnemar(gained, lost), _detectable(error), "mcnemar")


def mcnemar(gained: int, lost: int) -> float:
    """Return the two-sided mid-p value of McNemar's test (Fagerland, Lydersen and Laake 2013).

    Args:
        gained: Questions that only the second run answered right.
        lost: Questions that only the first run answered right.
    """
    n, fewer = gained + lost, min(gained, lost)
    if n == 0 or gained == lost:
        return 1.0
    return min(1.0, float(2 * stats.binom.cdf(fewer, n, 0.5) - stats.binom.pmf(fewer, n, 0.5)))


def compare_bootstrapped(
    first: Array, second: Array, clusters: Sequence[str], statistic: Statistic, seed: int = SEED
) -> Comparison | None:
    """Compare any score on the same questions: the same clusters are drawn for both runs; None for fewer than two."""
    pairs = _sum_clusters(np.concatenate([first, second], axis=1), clusters)
    if len(pairs) < _MIN_CLUSTERS:
        return None
    width = first.shape[1]
    difference = float(statistic(second.sum(axis=0)) - statistic(first.sum(axis=0)))
    drawn = resample(pairs, seed)
    drawn = statistic(drawn[:, width:]) - statistic(drawn[:, :width])
    below, above = (int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    # Plus one: the data itself is one of the draws, so p is never 0.
    p_value = min(1.0, 2 * (min(below, above) + 1) / (len(drawn) + 1))
    detectable = _detectable(float(drawn.std()))
    return Comparison(difference, _percentiles(drawn, len(pairs)), p_value, detectable, "bootstrap")


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected for their number (Holm 1979), in the given order."""
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    stepped = np.minimum(1.0, np.maximum.accumulate(np.asarray(p_values, dtype=float)[order] * factors))
    corrected = np.empty(len(p_values))
    corrected[order] = stepped
    return corrected.tolist()  # type: ignore[no-any-return]


def resample(sums: Array, seed: int, num_resamples: int = NUM_RESAMPLES) -> Array:
    """Draw clusters with replacement; return the sums of each draw, (resamples, sums)."""
    generator = np.random.default_rng(seed)
    size = len(sums)
    at_once = max(1, _CHUNK_VALUES // size)
    parts = []
    for start in range(0, num_resamples, at_once):
        number = min(at_once, num_resamples - start)
        drawn = generator.integers(0, size, (number, size))
        # Each draw gets a range of numbers of its own, so that one `bincount` counts all draws.
        drawn += size * np.arange(number)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=number * size).reshape(number, size)
        parts.append(counts @ sums)
    return np.concatenate(parts)


def _sum_clusters(components: Array, clusters: Sequence[str]) -> Array:
    numbers = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)[1]
    sums = np.zeros((int(numbers.max(initial=-1)) + 1, components.shape[1]))
    np.add.at(sums, numbers, components)
    return sums


def _percentiles(drawn: Any, num_clusters: int) -> Interval:
    t = stats.t.ppf((1 + CONFIDENCE) / 2, num_clusters - 1)
    # The level at which normal percentiles are as wide as a t interval for so few clusters.
    outside = float(stats.norm.cdf(-math.sqrt(num_clusters / (num_clusters - 1)) * t))
    low, high = np.quantile(drawn, [outside, 1 - outside])
    return Interval(float(low), float(high), "bootstrap")


def _detectable(standard_error: float) -> float:
    return float(_z() + stats.norm.ppf(POWER)) * standard_error


def _z() -> float:
    return float(stats.norm.ppf((1 + CONFIDENCE) / 2))
