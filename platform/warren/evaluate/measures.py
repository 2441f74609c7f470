"""Numbers of a score table as functions of single questions, so that each can have an interval and be compared."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from warren.errors import DataError
from warren.evaluate import statistics
from warren.evaluate.statistics import Array, Comparison, Interval

_MME_SUMS, _F1_SUMS = 4, 3
_SHARE, _MEAN = "share", "mean"


def _ratio(sums: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore"):
        # A bootstrap sample may miss a group, whose ratio is then 0/0; it counts as 0.
        ratio: Array = np.nan_to_num(np.divide(sums[..., 0], sums[..., 1]))
    return ratio


def _f1(sums: Array) -> Array:
    """Return F1 from true positives, false positives and false negatives."""
    with np.errstate(divide="ignore", invalid="ignore"):
        right = 2 * sums[..., 0]
        score: Array = np.nan_to_num(right / (right + sums[..., 1] + sums[..., 2]))
    return score


def _mean_f1(sums: Array) -> Array:
    score: Array = _f1(sums.reshape(*sums.shape[:-1], -1, _F1_SUMS)).mean(axis=-1)
    return score


def _mme(sums: Array) -> Array:
    """Return the sum of accuracy and accuracy+ over subtasks, from right, questions, images with both right, images."""
    tasks = sums.reshape(*sums.shape[:-1], -1, _MME_SUMS)
    total: Array = (_ratio(tasks[..., :2]) + _ratio(tasks[..., 2:])).sum(axis=-1)
    return total


def _mean_ratio(sums: Array) -> Array:
    """Return the mean of the ratios of groups: each group weighs the same."""
    score: Array = _ratio(sums.reshape(*sums.shape[:-1], -1, 2)).mean(axis=-1)
    return score


STATISTICS: Mapping[str, Callable[[Array], Array]] = {
    _SHARE: _ratio,
    _MEAN: _ratio,
    "ratio": _ratio,
    "f1": _f1,
    "mean_f1": _mean_f1,
    "mme": _mme,
    "mean_ratio": _mean_ratio,
}
"""Scores as functions of sums over questions, by the name that files hold."""


@dataclass(frozen=True)
class Measure:
    """One number.

    Attributes:
        name: Where it stands in the scores, such as `splits/random/f1_score`.
        statistic: Its name in `STATISTICS`; a `share` counts right answers and has a Wilson interval.
        scale: What the statistic is multiplied with, 100 for percent.
        keys: The questions that it rests on.
        clusters: What each question shares with others.
        components: What each question adds to the sums of the statistic. For shares and means these are the values
            alone; the sum of ones is implied.
    """

    name: str
    statistic: str
    scale: float
    keys: Sequence[str]
    clusters: Sequence[str]
    components: Sequence[Sequence[float]]

    @property
    def sums(self) -> Array:
        """The components as an array, (questions, sums)."""
        values = np.asarray(self.components, dtype=float).reshape(len(self.keys), -1)
        return np.hstack([values, np.ones_like(values)]) if self.statistic in (_SHARE, _MEAN) else values

    @property
    def value(self) -> float:
        """The number."""
        return self.scale * float(STATISTICS[self.statistic](self.sums.sum(axis=0)))

    def interval(self) -> Interval | None:
        """Return its 95 % interval; None where one image is too few to tell."""
        if self.statistic == _SHARE:
            interval: Interval | None = statistics.wilson(float(self.sums[:, 0].sum()), len(self.keys))
        else:
            interval = statistics.bootstrap(self.sums, self.clusters, STATISTICS[self.statistic])
        return interval and _scaled(interval, self.scale)

    def compare(self, other: "Measure") -> Comparison | None:
        """Compare with another run's number; the difference is the other's minus this one's.

        Raises:
            DataError: It rests on other questions.
        """
        if set(self.keys) != set(other.keys) or self.statistic != other.statistic or self.scale != other.scale:
            num_differing = len(set(self.keys) ^ set(other.keys))
            raise DataError(
                f"{self.name}: the two runs rest on different questions ({num_differing} are only in one): compare "
                "runs of one benchmark, split and convention with every question answered"
            )
        # The runs may have stored their questions in another order.
        place = {key: number for number, key in enumerate(other.keys)}
        order = [place[key] for key in self.keys]
        first, second = self.sums, other.sums[order]
        if self.statistic == _SHARE:
            comparison: Comparison | None = statistics.compare_shares(first[:, 0] > 0, second[:, 0] > 0)
        else:
            comparison = statistics.compare_bootstrapped(first, second, self.clusters, STATISTICS[self.statistic])
        return comparison and _scaled_comparison(comparison, self.scale)

    def to_json(self) -> dict[str, Any]:
        """Return the value as JSON types, with its number and interval."""
        interval = self.interval()
        flat = [list(row) for row in self.components]
        return {
            **asdict(self),
            "components": [row[0] for row in flat] if self.statistic in (_SHARE, _MEAN) else flat,
            "value": self.value,
            "interval": asdict(interval) if interval else None,
            "num_clusters": len(set(self.clusters)),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Measure":
        """Rebuild what `to_json` returned.

        Raises:
            DataError: It is something else.
        """
        try:
            rows = [row if isinstance(row, list) else [row] for row in value["components"]]
            name, statistic, scale = value["name"], value["statistic"], value["scale"]
            measure = cls(name, statistic, scale, value["keys"], value["clusters"], rows)
            if measure.statistic not in STATISTICS or len({len(rows), len(measure.keys), len(measure.clusters)}) != 1:
                raise DataError(f"not a measure: statistic {measure.statistic!r} of {len(rows)} questions")
        except (KeyError, TypeError) as error:
            raise DataError(f"not a measure of scores.json: {error!r}") from None
        return measure


def share(
    name: str, right: Mapping[str, bool], scale: float = 1.0, clusters: Mapping[str, str] | None = None
) -> Measure:
    """Return the share of right answers among questions."""
    return _of(name, _SHARE, {key: (float(value),) for key, value in right.items()}, scale, clusters)


def mean(
    name: str, values: Mapping[str, float], scale: float = 1.0, clusters: Mapping[str, str] | None = None
) -> Measure:
    """Return the mean of the points that questions earn."""
    return _of(name, _MEAN, {key: (float(value),) for key, value in values.items()}, scale, clusters)


def summed(
    name: str,
    statistic: str,
    components: Mapping[str, Sequence[float]],
    scale: float = 1.0,
    clusters: Mapping[str, str] | None = None,
) -> Measure:
    """Return another statistic of `STATISTICS`, from what each question adds to its sums."""
    return _of(name, statistic, components, scale, clusters)


def blocks(parts: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, tuple[float, ...]]:
    """Set the components of several groups of questions side by side, for a statistic over all groups."""
    widths = [len(next(iter(part.values()), ())) for part in parts]
    joined: dict[str, tuple[float, ...]] = {}
    for number, part in enumerate(parts):
        before, after = (0.0,) * sum(widths[:number]), (0.0,) * sum(widths[number + 1 :])
        joined |= {key: (*before, *values, *after) for key, values in part.items()}
    return joined


def nested_values(measures: Sequence[Measure]) -> dict[str, Any]:
    """Return the values of measures by their names, where each `/` in a name opens a further mapping."""
    values: dict[str, Any] = {}
    for measure in measures:
        *parents, name = measure.name.split("/")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = measure.value
    return values


def _of(
    name: str,
    statistic: str,
    components: Mapping[str, Sequence[float]],
    scale: float,
    clusters: Mapping[str, str] | None,
) -> Measure:
    keys = list(components)
    shared = [clusters.get(key, key) if clusters else key for key in keys]
    return Measure(name, statistic, scale, keys, shared, list(components.values()))


def _scaled(interval: Interval, scale: float) -> Interval:
    return Interval(interval.low * scale, interval.high * scale, interval.method)


def _scaled_comparison(comparison: Comparison, scale: float) -> Comparison:
    return Comparison(
        comparison.difference * scale,
        _scaled(comparison.interval, scale),
        comparison.p_value,
        comparison.smallest_detectable * scale,
        comparison.test,
    )
