"""From a plan to batch parts: what one Ray Data task does. No Ray here; it is a plain generator."""

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
from warren.data.manifest import Manifest
from warren.data.mixture import Mixture
from warren.data.model_inputs import EncodedSample, Inputs, tokenizer_from_json
from warren.data.order import Order, Plan, RowRef, Slice, WindowTask, window_multiple
from warren.data.sample import Sample
from warren.errors import BadSampleError, SampleTooLongError
from warren.storage import FileEntry, Location, read_verified

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
            files = [self.sources[each.dataset].manifest.shards[each.shard].file for each in task.slices]
            yield WindowRead(task, tuple(files))


@dataclass(frozen=True)
class WindowRead:
    """One window's task with the files it reads: a few kilobytes, whatever the size of the datasets.

    Attributes:
        files: The shard of each of the task's slices.
    """

    task: WindowTask
    files: tuple[FileEntry, ...]

    def to_row(self) -> dict[str, Any]:
        """Return the read as an Arrow row."""
        return {**asdict(self.task), "files": [file.to_json() for file in self.files]}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "WindowRead":
        """Rebuild what `to_row` returned."""
        facts = {key: value for key, value in row.items() if key not in ("files", "slices")}
        task = WindowTask(**facts, slices=tuple(Slice(**each) for each in row["slices"]))
        return cls(task, tuple(FileEntry.from_json(file) for file in row["files"]))


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
        """Yield what travels to the ranks: a row a rank, in their order, for so many steps at a time.

        Args:
            window: A `WindowRead` as an Arrow row.
        """
        steps = self.read(WindowRead.from_row(window))
        while group := list(itertools.islice(steps, steps_per_row)):
            for rank in range(self._cut.world_size):
                yield pack_parts([parts[rank] for parts in group])

    def read(self, read: WindowRead) -> Iterator[list[BatchPart]]:
        """Yield each batch of a task as its parts, one a rank.

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
                for found in many(lambda numbers: self._read_slices(read, numbers), shards):
                    samples.update(found)
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
        found: dict[RowRef, Sample] = {}
        for number in numbers:
            found.update(self._read_slice(number, read.task.slices[number], read.files[number]))
        return found

    def _read_slice(self, number: int, wanted: Slice, file: FileEntry) -> dict[RowRef, Sample]:
        folder = self._folders[wanted.dataset]
        location = folder / file.path
        try:
            table = location.retrying(lambda: _open(location).read_row_group(wanted.row_group))
        except (OSError, ValueError):
            _open.cache_clear()
            read_verified(folder, file)  # damaged bytes are said to be so; others read again
            table = _open(location).read_row_group(wanted.row_group)
        rows = table.slice(wanted.first_row, wanted.num_rows).to_pylist()
        return {RowRef(number, wanted.first_row + i): Sample.from_row(row) for i, row in enumerate(rows)}


def _by_shard(read: WindowRead, numbers: Iterable[int]) -> list[list[int]]:
    """Group slices by the shard they are in."""
    shards: dict[tuple[int, int], list[int]] = {}
    for number in numbers:
        wanted = read.task.slices[number]
        shards.setdefault((wanted.dataset, wanted.shard), []).append(number)
    return list(shards.values())


def iter_samples(folder: Location, manifest: Manifest) -> Iterator[Sample]:
    """Yield a dataset's samples in stored order, one row group in memory at a time."""
    for shard in manifest.shards:
        file = _open(folder / shard.file.path)
        for row_group in range(file.num_row_groups):
            yield from map(Sample.from_row, file.read_row_group(row_group).to_pylist())


@lru_cache(maxsize=64)
def _open(location: Location) -> pq.ParquetFile:
    return pq.ParquetFile(
        location.key, filesystem=location.filesystem, pre_buffer=True, page_checksum_verification=True
    )
