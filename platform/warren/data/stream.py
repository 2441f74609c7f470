"""From a plan to batch parts: what one Ray Data task does. No Ray here; it is a plain generator."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import pyarrow.parquet as pq

from warren.data.batch import BatchPart, Cut, Quarantined, cut_global_batch
from warren.data.inputs import EncodedSample, Inputs, tokenizer_from_json
from warren.data.manifest import Manifest
from warren.data.order import Order, Plan, RowRef, WindowTask, window_multiple
from warren.data.sample import Sample
from warren.errors import BadSampleError
from warren.storage import Location, read_verified


@dataclass(frozen=True)
class StreamSpec:
    """Everything that decides the global batches of a run, and nothing that only decides their speed."""

    folder: Location
    manifest: Manifest
    inputs: Inputs
    tokenizer_json: str
    global_batch_size: int
    max_length_tokens: int
    seed: int
    window_samples: int
    num_steps: int | None = None
    epochs: int | None = None

    def plan(self) -> Plan:
        """Build the run's plan; cheap, so every process makes its own."""
        window = window_multiple(self.window_samples, self.global_batch_size)
        order = Order([shard.row_groups for shard in self.manifest.shards], self.seed, window)
        return Plan(order, self.global_batch_size, num_steps=self.num_steps, epochs=self.epochs)


class BatchReader:
    """Reads one window's rows, each row group once, and yields its batch parts in order."""

    def __init__(self, spec: StreamSpec, cut: Cut) -> None:
        self._spec = spec
        self._cut = cut
        self._plan = spec.plan()

    def read(self, task: WindowTask) -> Iterator[list[BatchPart]]:
        """Yield each batch of a task as its parts, one a rank.

        Raises:
            CorruptDataError: A shard's bytes are damaged.
        """
        batches = self._plan.batches(task)
        samples: dict[RowRef, Sample] = {}
        for number, rows in enumerate(batches):
            for row in rows:
                if row not in samples:
                    samples.update(self._read_row_group(row))
            yield self._assemble(task.first_step + number, task.epoch, [samples.pop(row) for row in rows])

    def _assemble(self, step: int, epoch: int, samples: list[Sample]) -> list[BatchPart]:
        spec = self._spec
        tokenizer = tokenizer_from_json(spec.tokenizer_json)
        good: list[EncodedSample] = []
        bad: list[Quarantined] = []
        for sample in samples:
            try:
                good.append(spec.inputs.encode_sample(sample, tokenizer, spec.max_length_tokens))
            except BadSampleError as error:
                bad.append(Quarantined(sample.key, sample.source, str(error)))
        return cut_global_batch(
            step, epoch, good, bad, self._cut, spec.inputs.tokens.pad_token_id, spec.inputs.image.size_px
        )

    def _read_row_group(self, ref: RowRef) -> dict[RowRef, Sample]:
        shard = self._spec.manifest.shards[ref.shard]
        location = self._spec.folder / shard.file.path
        try:
            table = location.patiently(lambda: _open(location).read_row_group(ref.row_group))
        except (OSError, ValueError):
            _open.cache_clear()
            read_verified(self._spec.folder, shard.file)  # damaged bytes are said to be so; others read again
            table = _open(location).read_row_group(ref.row_group)
        rows = table.to_pylist()
        return {RowRef(ref.shard, ref.row_group, i): Sample.from_row(row) for i, row in enumerate(rows)}


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
