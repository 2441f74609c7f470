"""The Ray dataset of a run: the part of its plan that is left to train on, split over the ranks.

Ray Train builds the dataset whenever it starts a group of workers, and then splits it over their number. Both hooks are
used. The first looks up the newest checkpoint and reports it to the run monitor, so that the ranks go on from the same
step as their data. The second cuts the batches for the world size.

Ray Data takes seconds to start its processes. Meanwhile every rank reads its share of the first step itself, so that
training goes on as soon as the model is loaded.
"""

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import ray.data
from ray.data import ExecutionOptions
from ray.train import DataConfig

from warren.compat.ray_data import deal_rows_in_turn
from warren.config import Resources
from warren.data.batch import BatchPart, Cut, unpack_parts
from warren.data.stream import StreamSpec
from warren.train.checkpoint import CheckpointManifest
from warren.train.run import Run

BatchT = TypeVar("BatchT")
DATASET = "train"
_PREFETCHED_ROWS = 2
_ROW_BYTES = 4 << 20
_SHORT_PLAN_WINDOWS = 256  # some megabytes in the object store
_MAX_OWN_SAMPLES = 512  # a few seconds of one core
_PLANNER_CPUS = 0.001  # next to nothing; unlike the readers', or Ray Data would run both as one task


@dataclass(frozen=True)
class RemainingPlan:
    """The windows that a run has left to train on, one row each; Ray Train's controller builds it for each group.

    Here, and nowhere else, it is decided which checkpoint the workers go on from.

    A short plan is made at once. A long one is made by a Ray task that streams the windows as they are needed: neither
    the driver nor a reader holds it, but the first batch waits until one more process has started.

    Neither asks for a CPU: the workers that are about to start may hold every one. `from_arrow` would look at each
    table in a task that needs a whole CPU, and wait for ever for it.

    Attributes:
        report_start: Called with the chosen checkpoint, None for the beginning, before the workers ask for it.
    """

    run: Run
    spec: StreamSpec
    report_start: Callable[[CheckpointManifest | None], None] = lambda _: None

    def __call__(self) -> ray.data.Dataset:
        """Choose the checkpoint to go on from, and build the dataset of what is left from there."""
        # Asked anew at each start: the last workers may have committed a checkpoint since.
        start = self.run.checkpoints.latest()
        self.report_start(start)
        start_step = _first_streamed(self.spec, start.step if start else 0)
        if self.spec.num_windows(start_step) <= _SHORT_PLAN_WINDOWS:
            return ray.data.from_blocks(list(_windows(self.spec, start_step)))
        return ray.data.from_blocks([pa.table({"start_step": [start_step]})]).map_batches(
            _plan_windows(self.spec),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=_PLANNER_CPUS,
        )


class GlobalBatches(DataConfig):  # type: ignore[misc]
    """Turns planned windows into batch parts and splits them over the ranks: one row, one block, one rank.

    Rows are dealt to the ranks in turn, so every rank gets its own share of every step; the loop checks that it did.
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
            deal_rows_in_turn(stream)
            streams[name] = stream
        return super().configure(streams, world_size, *args, **kwargs)


def batch_parts(
    iterator: ray.data.DataIterator, spec: StreamSpec, cut: Cut, rank: int, start_step: int
) -> Iterator[BatchPart]:
    """Return a rank's batch parts from `start_step` on, and begin to load them at once.

    Args:
        iterator: The rank's share of the dataset that `RemainingPlan` built for the same step.
    """
    streamed = started(_streamed_parts(iterator))
    return itertools.chain(started(_own_parts(spec, cut, rank, start_step)), streamed)


def _first_streamed(spec: StreamSpec, start_step: int) -> int:
    """Return the first step that comes through Ray Data; the ranks read those before it themselves.

    Each rank must read all samples of a global batch, because unusable samples decide how it is cut. So they read one
    step only, and no large one. The last step always streams, because Ray Data needs a plan with at least one window.
    """
    num_own = 1 if spec.global_batch_size <= _MAX_OWN_SAMPLES else 0
    return max(start_step, min(start_step + num_own, spec.plan().num_steps - 1))


def _own_parts(spec: StreamSpec, cut: Cut, rank: int, start_step: int) -> Iterator[BatchPart]:
    reader = spec.reader(cut)
    for step in range(start_step, _first_streamed(spec, start_step)):
        yield next(reader.read(next(spec.reads(step))))[rank]


def _streamed_parts(iterator: ray.data.DataIterator) -> Iterator[BatchPart]:
    batches = iterator.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=_PREFETCHED_ROWS)
    for table in batches:
        yield from unpack_parts(table)


def started(batches: Iterator[BatchT]) -> Iterator[BatchT]:
    """Return the same batches, but start loading the first now, so that Ray Data starts while the model is loaded."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="warren-first-batch")
    first = thread.submit(next, batches, None)
    thread.shutdown(wait=False)

    def all_of_them() -> Iterator[BatchT]:
        part = first.result()
        if part is not None:
            yield part
            yield from batches

    return all_of_them()


def _steps_per_row(spec: StreamSpec, cut: Cut) -> int:
    """Return how many steps share a row: each row costs Ray Data milliseconds, whatever its size."""
    sample_bytes = 3 * spec.inputs.image.size_px**2 + 8 * spec.encoding.max_length_tokens
    return max(1, _ROW_BYTES * cut.world_size // (spec.global_batch_size * sample_bytes))


def _windows(spec: StreamSpec, start_step: int) -> Iterator[pa.Table]:
    for read in spec.reads(start_step):
        yield pa.Table.from_pylist([read.to_row()])


def _plan_windows(spec: StreamSpec) -> Callable[[pa.Table], Iterator[pa.Table]]:
    return lambda start: _windows(spec, start["start_step"][0].as_py())


def _read_windows(spec: StreamSpec, cut: Cut) -> Callable[[pa.Table], Iterator[pa.Table]]:
    """Return the function of a reading task; it needs nothing of this module, whose imports would delay it."""
    reader = spec.reader(cut)
    steps_per_row = _steps_per_row(spec, cut)

    def read(windows: pa.Table) -> Iterator[pa.Table]:
        for window in windows.to_pylist():
            yield from reader.rows(window, steps_per_row)

    return read
