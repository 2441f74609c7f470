"""The samples of an epoch: an exact number from each dataset, without a list of them in memory.

A dataset's samples form an endless stream of passes; an epoch takes the next `samples_per_epoch` of it. So a dataset
that gives half of its samples to an epoch has given each of them once after two, and one that gives two passes gives
each of them twice. A pass that an epoch takes only a part of is permuted by row groups first, so that the part comes
from everywhere; a whole pass is left to the order's own shuffle.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from warren.config import MixtureComponent
from warren.errors import ConfigError, EmptyDatasetError

_PASS = 2  # domain separation from the order's random streams


class RowGroups:
    """The row groups of several datasets under consecutive numbers; 4 bytes for each row group, 8 for each shard."""

    def __init__(self, datasets: Sequence[Sequence[Sequence[int]]]) -> None:
        counts = [len(shard) for shards in datasets for shard in shards]
        total = sum(counts)
        self.rows = np.fromiter((n for shards in datasets for shard in shards for n in shard), np.int32, total)
        self._first_of_shard = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
        self._first_shard = np.concatenate([[0], np.cumsum([len(s) for s in datasets], dtype=np.int64)]).astype(
            np.int64
        )

    def of_dataset(self, dataset: int) -> tuple[int, int]:
        """Return the numbers of a dataset's first row group and of the one after its last."""
        first, end = self._first_shard[dataset : dataset + 2]
        return int(self._first_of_shard[first]), int(self._first_of_shard[end])

    def locate(self, group: int) -> tuple[int, int, int]:
        """Return dataset, shard within it, and row group within that."""
        shard = int(np.searchsorted(self._first_of_shard, group, side="right")) - 1
        dataset = int(np.searchsorted(self._first_shard, shard, side="right")) - 1
        return dataset, shard - int(self._first_shard[dataset]), group - int(self._first_of_shard[shard])


@dataclass(frozen=True)
class Slices:
    """Runs of rows within row groups: what an epoch reads, before it is shuffled.

    Attributes:
        group: Number of the row group.
        start: First row within it.
        rows: How many.
    """

    group: np.ndarray
    start: np.ndarray
    rows: np.ndarray


class Mixture:
    """Datasets and how many samples of each make an epoch.

    Args:
        datasets: Per dataset and shard, the row counts of the row groups.
        seed: Decides which rows are taken when an epoch takes a part of a pass.
        samples_per_epoch: Per dataset; None takes each dataset once.

    Raises:
        EmptyDatasetError: There is nothing to train on.
    """

    def __init__(
        self,
        datasets: Sequence[Sequence[Sequence[int]]],
        seed: int,
        samples_per_epoch: Sequence[int] | None = None,
    ) -> None:
        self.groups = RowGroups(datasets)
        self.seed = seed
        spans = [self.groups.of_dataset(d) for d in range(len(datasets))]
        self._rows = [int(self.groups.rows[first:end].sum()) for first, end in spans]
        self.samples_per_epoch = tuple(self._rows if samples_per_epoch is None else samples_per_epoch)
        self.num_samples = sum(self.samples_per_epoch)
        if self.num_samples == 0 or 0 in self._rows:
            raise EmptyDatasetError("the dataset holds no samples, so there is no order of them")

    def slices(self, epoch: int) -> Slices:
        """Return what an epoch reads, dataset by dataset."""
        parts = [
            self._slices_of_pass(dataset, number, begin, end)
            for dataset, count in enumerate(self.samples_per_epoch)
            for number, begin, end in _passes(epoch * count, (epoch + 1) * count, self._rows[dataset])
        ]
        if len(parts) == 1:
            return parts[0]
        return Slices(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("group", "start", "rows")))

    def _slices_of_pass(self, dataset: int, number: int, begin: int, end: int) -> Slices:
        """Return samples `begin` to `end` of one pass over one dataset."""
        first, last = self.groups.of_dataset(dataset)
        group = np.arange(first, last, dtype=np.int32)
        # A whole pass needs no permutation of its own: the order shuffles it.
        if end - begin == self._rows[dataset]:
            return Slices(group, np.zeros(len(group), np.int32), self.groups.rows[first:last])
        np.random.default_rng([self.seed, number, _PASS, dataset]).shuffle(group)
        rows = self.groups.rows[group]
        ends = np.cumsum(rows, dtype=np.int64)
        touched = slice(np.searchsorted(ends, begin, side="right"), np.searchsorted(ends, end, side="left") + 1)
        group, rows, ends = group[touched], rows[touched], ends[touched]
        start = np.maximum(begin - (ends - rows), 0)
        return Slices(group, start.astype(np.int32), (np.minimum(rows, end - (ends - rows)) - start).astype(np.int32))


def samples_per_epoch(components: Sequence[MixtureComponent], rows: Sequence[int]) -> list[int]:
    """Return how many samples of each dataset an epoch takes, by the shares in a recipe.

    `weight`s are kept exactly (to one sample): the dataset that would run out first is seen once, the others in
    proportion. `epochs` may be fractions; `samples` may be more than the dataset has.

    Raises:
        ConfigError: A dataset would give nothing.
    """
    weights = [Fraction(str(component.weight)) for component in components if component.weight is not None]
    counts = []
    for component, own in zip(components, rows, strict=True):
        if component.weight is not None:
            scale = min(Fraction(n) / weight for n, weight in zip(rows, weights, strict=True))
            counts.append(int(scale * Fraction(str(component.weight))))
        elif component.samples is not None:
            counts.append(component.samples)
        else:
            counts.append(int(own * Fraction(str(component.epochs or 1))))
        if counts[-1] == 0:
            raise ConfigError(
                f"dataset {component.name!r} ({own} samples) would give no sample to an epoch: raise its share"
            )
    return counts


def _passes(begin: int, end: int, rows: int) -> list[tuple[int, int, int]]:
    """Cut a range of an endless stream into passes: (number, begin within it, end within it)."""
    passes = range(begin // rows, -(-end // rows))
    return [(p, max(0, begin - p * rows), min(rows, end - p * rows)) for p in passes]
