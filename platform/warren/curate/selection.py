"""A selection as a dataset: row groups of the parents' shards with masks, and new shards for sparse row groups.

A row group that keeps many of its rows is read where it is, with a mask over its rows. Of a row group that keeps few,
training would read far more than it uses, so those rows are copied into new shards.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from warren.curate.array_files import Arrays
from warren.curate.row_mask import RowSet, StoredRows
from warren.curate.sample_pieces import StoredShard
from warren.curate.tasks import NumberedTask, Runner, Workspace, finish
from warren.data.manifest import Shard, StoredGroup, write_shard
from warren.data.sample import Sample
from warren.data.stream import read_group
from warren.storage import Location


@dataclass(frozen=True)
class Layout:
    """How a selection is stored.

    Attributes:
        folder: The folder of the new dataset.
        label: Part of the new shards' names, so that jobs with other options write other files.
        rewrite_below: Row groups that keep a smaller share of their rows are copied into new shards.
    """

    folder: Location
    label: str
    rewrite_below: float
    samples_per_shard: int
    samples_per_row_group: int


def write_selection(
    run: Runner, work: Workspace, layout: Layout, shards: Sequence[StoredShard], selected: Location
) -> tuple[Shard, ...]:
    """Write the new shards, and return all shards of the selection, in order."""
    kept = StoredRows(selected).load()
    groups = _groups(shards, kept, layout.samples_per_shard)
    files = finish(run, work, [_Select(number, group, layout, selected) for number, group in enumerate(groups)])
    values = (json.loads(file.read("shards").tobytes()) for file in files)
    return tuple(Shard.from_json(value) for each in values for value in each)


def _groups(shards: Sequence[StoredShard], kept: RowSet, samples_per_shard: int) -> Iterator[tuple[StoredShard, ...]]:
    """Group consecutive shards, so that the rows that a group keeps would fill a new shard."""
    group: list[StoredShard] = []
    count = 0
    for stored in shards:
        rows = int(kept.mask(stored.first, stored.stop).sum())
        if not rows:
            continue
        group.append(stored)
        count += rows
        if count >= samples_per_shard:
            yield tuple(group)
            group, count = [], 0
    if group:
        yield tuple(group)


@dataclass(frozen=True)
class _Select(NumberedTask):
    """The selection of some consecutive shards."""

    shards: tuple[StoredShard, ...]
    layout: Layout
    selected: Location

    def compute(self) -> Arrays:
        selected: list[Shard] = []
        copied: list[tuple[StoredShard, int, np.ndarray]] = []
        for stored in self.shards:
            rows = np.arange(stored.first, stored.stop)
            mask = StoredRows(self.selected).contains(rows)
            taken = []
            for number, first, stop in stored.group_rows():
                kept = mask[first - stored.first : stop - stored.first]
                if not kept.any():
                    continue
                if kept.all() or kept.mean() >= self.layout.rewrite_below:
                    taken.append((stored.shard.group(number), kept))
                else:
                    copied.append((stored, number, np.flatnonzero(kept)))
            if taken:
                selected.append(_taken(stored, taken))
        selected += self._write(copied)
        text = json.dumps([shard.to_json() for shard in selected])
        return {"shards": np.frombuffer(text.encode(), np.uint8)}

    def _write(self, copied: list[tuple[StoredShard, int, np.ndarray]]) -> list[Shard]:
        """Copy the kept rows of sparse row groups into as few new shards as possible."""
        made: list[Shard] = []
        waiting: list[Sample] = []

        def flush() -> None:
            path = f"shard-{self.number:06d}-{len(made):04d}-{self.layout.label}.parquet"
            made.append(write_shard(self.layout.folder, path, waiting, self.layout.samples_per_row_group))
            waiting.clear()

        for stored, number, rows in copied:
            table = read_group(stored.folder, stored.shard.group(number)).take(rows)
            waiting += map(Sample.from_row, table.to_pylist())
            if len(waiting) >= self.layout.samples_per_shard:
                flush()
        if waiting:
            flush()
        return made


def _taken(stored: StoredShard, groups: list[tuple[StoredGroup, np.ndarray]]) -> Shard:
    """Return the selected part of a shard; if that is a selection itself, as a part of the original shard."""
    masks = []
    for group, kept in groups:
        # The parent may be a selection too: its mask is in places of the original row group, so the new one must be.
        places = group.rows()
        if places is None:
            masks.append("" if kept.all() else _mask(np.flatnonzero(kept)))
        else:
            masks.append(group.mask if kept.all() else _mask(places[kept]))
    return Shard(
        stored.shard.file,
        tuple(int(kept.sum()) for _, kept in groups),
        stored.shard.dataset or stored.reference,
        tuple(group.row_group for group, _ in groups),
        tuple(masks),
    )


def _mask(places: np.ndarray) -> str:
    bits = np.zeros(int(places[-1]) + 1, bool)
    bits[places] = True
    return np.packbits(bits, bitorder="little").tobytes().hex()
