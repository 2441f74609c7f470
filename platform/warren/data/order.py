"""The order of samples: a pure function of (dataset, seed, epoch), with no state and no memory of its own.

An epoch is shuffled on two levels. Row groups of all shards are permuted; the resulting stream is cut into windows,
and samples are permuted inside each window. So a reader of one window reads whole row groups once, in few requests,
and holds one window in memory, while a window's samples come from all over the dataset.

A global batch never spans two windows, except that a window is a whole number of global batches; so one window is the
unit of work that Ray Data hands out, and resuming is leaving out the windows (and batches) already trained on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from warren.errors import EmptyDatasetError

_GROUPS, _WINDOW = 0, 1  # domain separation of the two shuffles' random streams


@dataclass(frozen=True)
class RowRef:
    """Where one sample is stored."""

    shard: int
    row_group: int
    row: int


class Order:
    """Sample order of a dataset.

    Args:
        row_groups: Per shard, the row counts of its row groups.
        seed: Names the order.
        window_samples: Samples shuffled together; memory of a reader, and quality of mixing, grow with it.
    """

    def __init__(self, row_groups: Sequence[Sequence[int]], seed: int, window_samples: int) -> None:
        self._rows = np.array([rows for shard in row_groups for rows in shard], dtype=np.int64)
        self._shard = np.repeat(np.arange(len(row_groups)), [len(shard) for shard in row_groups])
        self._group = np.concatenate([np.arange(len(shard)) for shard in row_groups] or [np.zeros(0, np.int64)])
        self._seed = seed
        self.window_samples = window_samples
        self.num_samples = int(self._rows.sum())
        if self.num_samples == 0:
            raise EmptyDatasetError("the dataset holds no samples, so there is no order of them")
        self._epoch: tuple[int, np.ndarray, np.ndarray] | None = None

    @property
    def num_windows(self) -> int:
        """Windows of one epoch."""
        return -(-self.num_samples // self.window_samples)

    def window(self, epoch: int, window: int) -> list[RowRef]:
        """Return one window's samples in training order."""
        groups, ends = self._epoch_groups(epoch)
        start = window * self.window_samples
        stop = min(start + self.window_samples, self.num_samples)
        shuffled = start + np.random.default_rng([self._seed, epoch, _WINDOW, window]).permutation(stop - start)
        position = np.searchsorted(ends, shuffled, side="right")
        group = groups[position]
        row = shuffled - (ends[position] - self._rows[group])
        return [
            RowRef(int(s), int(g), int(r)) for s, g, r in zip(self._shard[group], self._group[group], row, strict=True)
        ]

    def _epoch_groups(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the epoch's permuted row groups and the running end of each in the sample stream."""
        if self._epoch is None or self._epoch[0] != epoch:
            groups = np.random.default_rng([self._seed, epoch, _GROUPS]).permutation(len(self._rows))
            self._epoch = (epoch, groups, np.cumsum(self._rows[groups]))
        return self._epoch[1], self._epoch[2]


@dataclass(frozen=True)
class WindowTask:
    """The part of one window that a reader turns into global batches.

    Attributes:
        epoch: Which pass over the dataset.
        window: Which window of that epoch.
        first_step: Global step of the first batch to produce.
        skip_batches: Batches at the window's start that were trained on already.
        num_batches: Batches to produce.
    """

    epoch: int
    window: int
    first_step: int
    skip_batches: int
    num_batches: int


class Plan:
    """Which samples every step of a run trains on.

    The last batch of an epoch is smaller when the samples do not divide; the token-weighted mean stays right.

    Args:
        order: Its `window_samples` must be a multiple of `global_batch_size`.
        global_batch_size: Samples per optimizer step.
        num_steps: Steps of the run; None with `epochs`.
        epochs: Passes over the dataset; None with `num_steps`.
    """

    def __init__(
        self, order: Order, global_batch_size: int, *, num_steps: int | None = None, epochs: int | None = None
    ) -> None:
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
            yield WindowTask(epoch, window, step, skip, count)
            step += count

    def batches(self, task: WindowTask) -> list[list[RowRef]]:
        """Return the rows of each global batch of a task."""
        rows = self.order.window(task.epoch, task.window)
        size = self.global_batch_size
        starts = range(task.skip_batches * size, (task.skip_batches + task.num_batches) * size, size)
        return [rows[start : start + size] for start in starts]


def window_multiple(window_samples: int, global_batch_size: int) -> int:
    """Round a window up to whole global batches."""
    return -(-window_samples // global_batch_size) * global_batch_size
