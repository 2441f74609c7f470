"""Feeding a run: the remainder of its plan as a Ray Dataset, dealt out to the ranks share by share.

Ray Train asks for the dataset anew whenever it starts a group of workers, and then for its split over their number.
Both hooks are used: the first looks up the newest checkpoint, the second cuts the batches for the world size.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray.data
from ray.data import ExecutionOptions
from ray.train import DataConfig

from warren.config import Resources
from warren.data.batch import BatchPart, Cut, pack_parts, unpack_parts
from warren.data.stream import StreamSpec, WindowRead
from warren.train.record import Run

DATASET = "train"
_PREFETCHED_ROWS = 2
_ROW_BYTES = 4 << 20
_PLANNER_CPUS = 0.001  # next to nothing; unlike the readers', or Ray Data would run both as one task


@dataclass(frozen=True)
class RemainingPlan:
    """The windows a run has yet to train on, one row each; evaluated at every start of a worker group.

    One Ray task plans, and streams the windows as they are needed: neither the driver nor a reader holds the plan.
    """

    run: Run
    spec: StreamSpec

    def __call__(self) -> ray.data.Dataset:
        """Build the dataset of what is left."""
        latest = self.run.checkpoints.latest()
        start = pa.table({"start_step": [latest.step if latest else 0]})
        return ray.data.from_arrow(start).map_batches(
            _plan_windows(self.spec),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=_PLANNER_CPUS,
        )


class GlobalBatches(DataConfig):  # type: ignore[misc]
    """Turns planned windows into batch parts and deals them out: one row, one block, one rank.

    Ray Data's splitter gives each block to the rank with the fewest rows so far. Blocks of exactly one row in plan
    order make that round-robin, so every rank gets its own share of every step; the loop checks that it did.
    """

    def __init__(self, spec: StreamSpec, resources: Resources) -> None:
        options = ExecutionOptions(preserve_order=True)
        super().__init__(execution_options=options, enable_shard_locality=False)
        self._spec = spec
        self._resources = resources

    def configure(self, datasets: dict[str, ray.data.Dataset], world_size: int, *args: Any, **kwargs: Any) -> Any:
        """Split each dataset over the ranks; Ray Train calls it at every start of a worker group."""
        cut = self._spec.cut(world_size, self._resources)
        read = _read_windows(self._spec, cut)
        streams = {}
        for name, plan in datasets.items():
            stream = plan.map_batches(
                read,
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=self._resources.data_cpus_per_task,
                zero_copy_batch=True,
            )
            stream.context.target_max_block_size = 1  # every row a block of its own
            streams[name] = stream
        return super().configure(streams, world_size, *args, **kwargs)


def batch_parts(iterator: ray.data.DataIterator) -> Iterator[BatchPart]:
    """Yield a rank's batch parts from its share of the dataset."""
    batches = iterator.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=_PREFETCHED_ROWS)
    for table in batches:
        yield from unpack_parts(table)


def _steps_per_row(spec: StreamSpec, cut: Cut) -> int:
    """Return how many steps travel together: handing out a row costs Ray Data milliseconds, whatever its size."""
    sample_bytes = 3 * spec.inputs.image.size_px**2 + 8 * spec.encoding.max_length_tokens
    return max(1, _ROW_BYTES * cut.world_size // (spec.global_batch_size * sample_bytes))


def _plan_windows(spec: StreamSpec) -> Callable[[pa.Table], Iterator[pa.Table]]:
    def plan(start: pa.Table) -> Iterator[pa.Table]:
        for read in spec.reads(start["start_step"][0].as_py()):
            yield pa.Table.from_pylist([read.to_row()])

    return plan


def _read_windows(spec: StreamSpec, cut: Cut) -> Callable[[pa.Table], Iterator[pa.Table]]:
    reader = spec.reader(cut)
    steps_per_row = _steps_per_row(spec, cut)

    def read(windows: pa.Table) -> Iterator[pa.Table]:
        for row in windows.to_pylist():
            steps = _batched(reader.read(WindowRead.from_row(row)), steps_per_row)
            for parts_of_steps in steps:
                for rank in range(cut.world_size):
                    yield pack_parts([parts[rank] for parts in parts_of_steps])

    return read


def _batched(items: Iterator[list[BatchPart]], size: int) -> Iterator[list[list[BatchPart]]]:
    while group := list(itertools.islice(items, size)):
        yield group
