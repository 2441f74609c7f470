"""The order of samples: a pure function of (datasets, mixture, seed, epoch), with no state and no memory of its own.

An epoch is shuffled on two levels. Row groups of all shards of all datasets are permuted; the resulting stream is cut
into windows, and samples are permuted inside each window. So a reader of one window reads whole row groups once, in few
requests, and holds one window in memory, while a window's samples come from all over the datasets.

A global batch never spans two windows: a window is a whole number of global batches; so one window is the unit of work
that Ray Data hands out, and resuming is leaving out the windows (and batches) already trained on.

Planning an epoch takes about 16 bytes for each row group, reading a window takes the window (`make bench-order`).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from warren.data.mixture import Mixture

_GROUPS, _WINDOW = 0, 1  # domain separation of the two shuffles' random streams


@dataclass(frozen=True)
class Slice:
    """A run of rows of one row group: what a reader reads at once."""

    dataset: int
    shard: int
    row_group: int
    first_row: int
    num_rows: int


@dataclass(frozen=True)
class RowRef:
    """Where one sample is: a row of the n-th slice of its window."""

    slice: int
    row: int


class Order:
    """Sample order of a mixture of datasets.

    Args:
        mixture: The samples of an epoch; its seed decides the order.
        window_samples: Samples shuffled together. A larger window mixes better and takes more memory of a reader.
    """

    def __init__(self, mixture: Mixture, window_samples: int) -> None:
        self._mixture = mixture
        self.seed = mixture.seed
        self.window_samples = window_samples
        self.num_samples = mixture.num_samples
        self._epoch: tuple[int, np.ndarray, np.ndarray, np.ndarray] | None = None

    @property
    def num_windows(self) -> int:
        """Windows of one epoch."""
        return -(-self.num_samples // self.window_samples)

    def window(self, epoch: int, window: int) -> tuple[Slice, ...]:
        """Return what one window holds, before its samples are shuffled."""
        group, start, ends = self._shuffled_slices(epoch)
        begin = window * self.window_samples
        end = min(begin + self.window_samples, self.num_samples)
        slices = []
        position = int(np.searchsorted(ends, begin, side="right"))
        while begin < end:
            until = min(int(ends[position]), end)
            before = int(ends[position - 1]) if position else 0
            place = self._mixture.groups.locate(int(group[position]))
            slices.append(Slice(*place, int(start[position]) + begin - before, until - begin))
            begin, position = until, position + 1
        return tuple(slices)

    def _shuffled_slices(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return row group and first row of the epoch's permuted slices, and each one's end in the sample stream."""
        cached = self._epoch  # read once: a run's threads share the order
        if cached is None or cached[0] != epoch:
            cached = self._epoch = None  # before the next one takes its place in memory
            slices = self._mixture.slices(epoch)
            shuffled = np.arange(len(slices.group), dtype=np.int32)
            np.random.default_rng([self.seed, epoch, _GROUPS]).shuffle(shuffled)
            ends = np.cumsum(slices.rows[shuffled], dtype=np.int64)
            cached = self._epoch = (epoch, slices.group[shuffled], slices.start[shuffled], ends)
        return cached[1], cached[2], cached[3]


@dataclass(frozen=True)
class WindowTask:
    """The part of one window that a reader turns into global batches. The reader needs nothing else.

    Attributes:
        seed: Decides the order within the window.
        epoch: Which pass over the mixture.
        window: Which window of that epoch.
        first_step: Global step of the first batch to produce.
        skip_batches: Batches at the window's start that were trained on already.
        num_batches: Batches to produce.
        slices: What the whole window holds.
    """

    seed: int
    epoch: int
    window: int
    first_step: int
    skip_batches: int
    num_batches: int
    slices: tuple[Slice, ...]

    def batches(self, global_batch_size: int) -> list[list[RowRef]]:
        """Return the rows of each global batch to produce."""
        ends = np.cumsum([each.num_rows for each in self.slices])
        shuffled = np.random.default_rng([self.seed, self.epoch, _WINDOW, self.window]).permutation(int(ends[-1]))
        chosen = shuffled[self.skip_batches * global_batch_size :][: self.num_batches * global_batch_size]
        # From places in the window to its slices: the slice whose end is the first beyond the place.
        position = np.searchsorted(ends, chosen, side="right")
        first = np.array([each.first_row for each in self.slices]) - np.concatenate([[0], ends[:-1]])
        rows = [RowRef(int(s), int(r)) for s, r in zip(position, chosen + first[position], strict=True)]
        return [rows[start : start + global_batch_size] for start in range(0, len(rows), global_batch_size)]


class Plan:
    """Which samples every step of a run trains on.

    The last batch of an epoch is smaller when the samples do not divide; the token-weighted mean stays right.

    Args:
        order: Its `window_samples` must be a multiple of `global_batch_size`.
        global_batch_size: Samples per optimizer step.
        num_steps: Steps of the run; None with `epochs`.
        epochs: Passes over the mixture; None with `num_steps`.
    """

    def __init__(
        self, order: Order, global_batch_size: int, *, num_steps: int | None = None, epochs: int | None = None
    ) -> None:
        # A global batch never spans two windows, so that one task can make it alone.
        if order.window_samples % global_batch_size:
            raise ValueError(f"window of {order.window_samples} samples, global batch of {global_batch_size}")
        self.order = order
        self.global_batch_size = global_batch_size
        self.steps_per_epoch = -(-order.num_samples // global_batch_size)
        self.num_steps = num_steps if num_steps is not None else (epochs or 0) * self.steps_per_epoch

    def tasks(self, start_step: int = 0) -> Iterator[WindowTask]:
        """Yield the work that is left from `start_step` on, in order."""
        per_window = self.order.window_samples // self.global_batch_size
        step = start_step
        while step < self.num_steps:
            epoch, batch = divmod(step, self.steps_per_epoch)
            window, skip = divmod(batch, per_window)
            left_in_window = min(per_window, self.steps_per_epoch - window * per_window) - skip
            count = min(left_in_window, self.num_steps - step)
            yield WindowTask(self.order.seed, epoch, window, step, skip, count, self.order.window(epoch, window))
            step += count


def window_multiple(window_samples: int, global_batch_size: int) -> int:
    """Round a window up to whole global batches."""
    return -(-window_samples // global_batch_size) * global_batch_size
