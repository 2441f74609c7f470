"""The work of one Ray Data task: from a window of the plan to batch parts. It is a plain generator without Ray."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from warren.config import Resources
from warren.data.batch import BatchPart, Cut, Quarantined, cut_global_batch, pack_parts
from warren.data.manifest import Manifest, StoredGroup, folder_of
from warren.data.mixture import Mixture
from warren.data.model_inputs import EncodedSample, Inputs, tokenizer_from_json
from warren.data.order import Order, Plan, RowRef, Slice, WindowTask, window_multiple
from warren.data.sample import Sample
from warren.errors import BadSampleError, SampleTooLongError
from warren.storage import FileEntry, Location, read_verified
from warren.storage.parquet import open_parquet

_PARALLEL_READS = 8  # of shards that a batch needs: a request to object storage is mostly waiting


@dataclass(frozen=True)
class DatasetSource:
    """A dataset that a run trains on, and how many of its samples an epoch takes."""

    folder: Location
    manifest: Manifest
    samples_per_epoch: int


@dataclass(frozen=True)
class Encoding:
    """How stored samples become tensors."""

    inputs: Inputs
    tokenizer_json: str
    max_length_tokens: int


@dataclass(frozen=True)
class StreamSpec:
    """Everything that decides the global batches of a run, and nothing that only decides their speed."""

    sources: tuple[DatasetSource, ...]
    encoding: Encoding
    global_batch_size: int
    seed: int
    window_samples: int
    num_steps: int | None = None
    epochs: int | None = None

    @property
    def inputs(self) -> Inputs:
        """What the model expects at its inputs."""
        return self.encoding.inputs

    def plan(self) -> Plan:
        """Return the run's plan."""
        return self._plan

    def __getstate__(self) -> dict[str, Any]:
        # Without the plan, which may be large: a process that needs it builds it once from the rest.
        return {name: value for name, value in self.__dict__.items() if name != "_plan"}

    @cached_property
    def _plan(self) -> Plan:
        window = window_multiple(self.window_samples, self.global_batch_size)
        row_groups = [[shard.row_groups for shard in source.manifest.shards] for source in self.sources]
        mixture = Mixture(row_groups, self.seed, [source.samples_per_epoch for source in self.sources])
        order = Order(mixture, window)
        return Plan(order, self.global_batch_size, num_steps=self.num_steps, epochs=self.epochs)

    def cut(self, world_size: int, resources: Resources) -> Cut:
        """Return how these resources cut a global batch."""
        packed_tokens = self.encoding.max_length_tokens if resources.packing else None
        return Cut.of(self.global_batch_size, world_size, resources.micro_batch_size, packed_tokens)

    def reader(self, cut: Cut) -> "BatchReader":
        """Build what turns windows into batch parts; it holds no manifest, which may be large."""
        folders = [source.folder for source in self.sources]
        return BatchReader(folders, self.encoding, self.global_batch_size, cut)

    def num_windows(self, start_step: int = 0) -> int:
        """Return how many windows are left from `start_step` on, at most."""
        plan = self.plan()
        return -(-(plan.num_steps - start_step) * self.global_batch_size // plan.order.window_samples) + 1

    def reads(self, start_step: int = 0) -> Iterator["WindowRead"]:
        """Yield what is left to read from `start_step` on, in order."""
        for task in self.plan().tasks(start_step):
            shards = [self.sources[each.dataset].manifest.shards[each.shard] for each in task.slices]
            groups = [shard.group(each.row_group) for shard, each in zip(shards, task.slices, strict=True)]
            yield WindowRead(task, tuple(groups))


@dataclass(frozen=True)
class WindowRead:
    """One window's task with the row groups it reads: a few kilobytes, whatever the size of the datasets.

    Attributes:
        groups: Where each of the task's slices is stored.
    """

    task: WindowTask
    groups: tuple[StoredGroup, ...]

    def to_row(self) -> dict[str, Any]:
        """Return the read as an Arrow row."""
        return {**asdict(self.task), "groups": [asdict(group) for group in self.groups]}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "WindowRead":
        """Rebuild what `to_row` returned."""
        facts = {key: value for key, value in row.items() if key not in ("groups", "slices")}
        task = WindowTask(**facts, slices=tuple(Slice(**each) for each in row["slices"]))
        groups = [{**group, "file": FileEntry.from_json(group["file"])} for group in row["groups"]]
        return cls(task, tuple(StoredGroup(**group) for group in groups))


class BatchReader:
    """Reads one window's rows, each slice once, when its first row is needed, and yields batch parts in order.

    Args:
        folders: Of the datasets that slices are numbered by.
    """

    def __init__(self, folders: Sequence[Location], encoding: Encoding, global_batch_size: int, cut: Cut) -> None:
        self._folders = folders
        self._encoding = encoding
        self._global_batch_size = global_batch_size
        self._cut = cut

    def rows(self, window: dict[str, Any], steps_per_row: int) -> Iterator[pa.Table]:
        """Yield one row for each rank, in the order of the ranks, for `steps_per_row` steps at a time.

        Args:
            window: A `WindowRead` as an Arrow row.
        """
        steps = self.read(WindowRead.from_row(window))
        while group := list(itertools.islice(steps, steps_per_row)):
            for rank in range(self._cut.world_size):
                yield pack_parts([parts[rank] for parts in group])

    def read(self, read: WindowRead) -> Iterator[list[BatchPart]]:
        """Yield each batch of a task as its parts, one for each rank.

        Raises:
            CorruptDataError: A shard's bytes are damaged.
        """
        inputs = self._encoding.inputs
        for step, (good, bad) in enumerate(self.encode(read), read.task.first_step):
            pad_token_id, size_px = inputs.tokens.pad_token_id, inputs.image.size_px
            yield cut_global_batch(step, read.task.epoch, good, bad, self._cut, pad_token_id, size_px)

    def encode(self, read: WindowRead) -> Iterator[tuple[list[EncodedSample], list[Quarantined]]]:
        """Yield each batch of a task before it is cut: its samples in order, and those that cannot be used."""
        samples: dict[RowRef, Sample] = {}
        with ThreadPoolExecutor(_PARALLEL_READS, thread_name_prefix="warren-read") as pool:
            for rows in read.task.batches(self._global_batch_size):
                shards = _by_shard(read, dict.fromkeys(row.slice for row in rows if row not in samples))
                many = pool.map if len(shards) > 1 else map
                for shard_samples in many(lambda numbers: self._read_slices(read, numbers), shards):
                    samples.update(shard_samples)
                yield self._encode([samples.pop(row) for row in rows])

    def _encode(self, samples: list[Sample]) -> tuple[list[EncodedSample], list[Quarantined]]:
        encoding = self._encoding
        tokenizer = tokenizer_from_json(encoding.tokenizer_json)
        good: list[EncodedSample] = []
        bad: list[Quarantined] = []
        for sample in samples:
            try:
                good.append(encoding.inputs.encode_sample(sample, tokenizer, encoding.max_length_tokens))
            except BadSampleError as error:
                num_cut = error.num_cut_tokens if isinstance(error, SampleTooLongError) else 0
                bad.append(Quarantined(sample.key, sample.source, str(error), num_cut))
        return good, bad

    def _read_slices(self, read: WindowRead, numbers: list[int]) -> dict[RowRef, Sample]:
        """Read slices of one shard, one after the other: an open Parquet file is for one thread at a time."""
        samples: dict[RowRef, Sample] = {}
        for number in numbers:
            samples.update(self._read_slice(number, read.task.slices[number], read.groups[number]))
        return samples

    def _read_slice(self, number: int, slice_: Slice, group: StoredGroup) -> dict[RowRef, Sample]:
        table = read_group(self._folders[slice_.dataset], group, slice_.first_row, slice_.num_rows)
        return {RowRef(number, slice_.first_row + i): Sample.from_row(row) for i, row in enumerate(table.to_pylist())}


def read_group(
    folder: Location, group: StoredGroup, first: int = 0, count: int | None = None, columns: list[str] | None = None
) -> pa.Table:
    """Read a row group's rows that belong to a dataset, or `count` of them from the one at `first` on.

    Args:
        folder: Of the dataset.
        columns: The columns to read; None: all.

    Raises:
        CorruptDataError: The object's bytes are damaged.
    """
    stored_in = folder_of(folder, group)
    location = stored_in / group.file.path
    try:
        table = location.retrying(lambda: _open(location).read_row_group(group.row_group, columns=columns))
    except (OSError, ValueError):
        _open.cache_clear()
        read_verified(stored_in, group.file)  # raises if the bytes are damaged; else the read is repeated
        table = _open(location).read_row_group(group.row_group, columns=columns)
    rows = group.rows(first, count)
    return table if rows is None else table.take(rows) if group.mask else table.slice(first, count)


def _by_shard(read: WindowRead, numbers: Iterable[int]) -> list[list[int]]:
    """Group slices by the shard they are in."""
    shards: dict[tuple[int, int], list[int]] = {}
    for number in numbers:
        slice_ = read.task.slices[number]
        shards.setdefault((slice_.dataset, slice_.shard), []).append(number)
    return list(shards.values())


def iter_samples(folder: Location, manifest: Manifest) -> Iterator[Sample]:
    """Yield a dataset's samples in stored order, one row group in memory at a time."""
    for shard in manifest.shards:
        for number in range(len(shard.row_groups)):
            yield from map(Sample.from_row, read_group(folder, shard.group(number)).to_pylist())


@lru_cache(maxsize=64)
def _open(location: Location) -> pq.ParquetFile:
    # Pages have checksums, so a read of one row group finds damage without a digest of the whole shard.
    return open_parquet(
        location.key,
        str(location),
        filesystem=location.filesystem,
        pre_buffer=True,
        page_checksum_verification=True,
    )
