"""Steps that look at one cluster at a time: near duplicates, SemDeDup, a balanced sample.

A cluster that fits into a task's memory is one task's, with its neighbours. A larger one is cut into blocks, and every
block is compared with itself and with each of those behind it, so that no pair is lost: one task a block writes what it
found, and one task puts that together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from warren.config.curate import BalanceStep, NearDuplicatesStep, SemDeDupStep
from warren.curate.arrays import ArrayFile, Arrays
from warren.curate.clusters import Bucket, Clusters, Members, read_members
from warren.curate.near_duplicates import chosen, components, largest, links
from warren.curate.report import Groups
from warren.curate.row_mask import RowSet
from warren.curate.sampling import lowest_of_each
from warren.curate.semdedup import beaten, order_of
from warren.curate.tasks import Runner, Task, Workspace, finish
from warren.storage import Location

WithinStep = NearDuplicatesStep | SemDeDupStep | BalanceStep
_GROUPS = 4  # that a report shows
Ranges = tuple[tuple[int, int], ...]


def keep_within(
    run: Runner, work: Workspace, step: WithinStep, clusters: Clusters, alive: Location, num_rows: int, memory: int
) -> RowSet:
    """Return what a step keeps of the selected samples.

    Args:
        alive: The stored set of them.
        num_rows: Rows of all datasets.
        memory: Bytes that a task may hold.
    """
    tasks: list[Task] = []
    large: list[tuple[int, Bucket]] = []
    for number, bucket in enumerate(clusters.buckets(memory)):
        if bucket.count * clusters.row_bytes > memory and not isinstance(step, BalanceStep):
            large.append((number, bucket))
        else:
            tasks.append(_Bucket(number, bucket.ranges, clusters.files, alive, step))
    for number, bucket in large:
        blocks = _cut(bucket.ranges, max(1, memory // clusters.row_bytes // 2))
        compared = [_Compare(n, tuple(blocks[n:]), clusters.files, alive, step) for n in range(len(blocks))]
        files = finish(run, work / f"blocks-{number:06d}", compared)
        tasks.append(_Together(number, tuple(file.location for file in files), step))
    kept = RowSet.empty(num_rows)
    for file in finish(run, work / "buckets", tasks):
        kept.add(file.read("row").astype(np.int64))
    return kept


def _cut(ranges: Ranges, rows: int) -> list[Ranges]:
    """Cut a bucket into blocks of so many rows; each has a range of every file, mostly empty."""
    blocks: list[list[tuple[int, int]]] = []
    room = 0
    for file, (start, stop) in enumerate(ranges):
        while start < stop:
            if room == 0:
                blocks.append([(0, 0)] * len(ranges))
                room = rows
            end = min(stop, start + room)
            blocks[-1][file] = (start, end)
            room -= end - start
            start = end
    return [tuple(block) for block in blocks]


@dataclass(frozen=True)
class _Bucket:
    number: int
    ranges: Ranges
    files: tuple[Location, ...]
    alive: Location
    step: WithinStep

    @property
    def name(self) -> str:
        return f"{self.number:06d}"

    def compute(self) -> Arrays:
        members = read_members(self.files, self.ranges, self.alive, images=not isinstance(self.step, BalanceStep))
        if isinstance(self.step, BalanceStep):
            mask = lowest_of_each(members.cluster, members.row, self.step.samples_per_cluster, self.step.seed)
            return {"row": np.sort(members.row[mask])}
        parts = [_of_cluster(members, where, self.step) for where in members.clusters()] if len(members.row) else []
        if not parts:
            return {"row": members.row}
        names = parts[0].keys()
        together = {name: np.concatenate([part[name] for part in parts]) for name in names}
        return _largest_of({**together, "row": np.sort(together["row"])})


def _largest_of(arrays: Arrays) -> Arrays:
    """Keep the largest of the groups that several clusters have, if there are groups."""
    if "sizes" not in arrays:
        return arrays
    best = np.argsort(-arrays["sizes"], kind="stable")[:_GROUPS]
    return {**arrays, "groups": arrays["groups"][best], "sizes": arrays["sizes"][best]}


def largest_groups(work: Workspace) -> Groups:
    """Return size and first rows of the largest groups of near duplicates, from what `keep_within` left."""
    files = [ArrayFile(location) for location in (work / "buckets").folder.list()]
    files = [file for file in files if "sizes" in file]
    if not files:
        return ()
    arrays = {name: np.concatenate([file.read(name) for file in files]) for name in ("groups", "sizes")}
    best = _largest_of(arrays)
    members = [tuple(row for row in group if row >= 0) for group in best["groups"].tolist()]
    return tuple(zip(best["sizes"].tolist(), members, strict=True))


def _of_cluster(members: Members, where: slice, step: WithinStep) -> Arrays:
    """Return the rows that a step keeps of one cluster, and the largest groups of near duplicates."""
    image, row = members.image[where], members.row[where]
    if isinstance(step, NearDuplicatesStep):
        label = components(len(row), *links(image, None, step.threshold))
        return {"row": row[chosen(label, members.distance[where], step.keep)], **largest(label, row)}
    assert isinstance(step, SemDeDupStep)
    order = order_of(members.cosine[where], row, step.first)
    out, _ = beaten(image, order, image, order, step.threshold)
    return {"row": row[~out]}


@dataclass(frozen=True)
class _Compare:
    """One block of a large cluster, compared with itself and those behind it."""

    number: int
    blocks: tuple[Ranges, ...]
    files: tuple[Location, ...]
    alive: Location
    step: WithinStep

    @property
    def name(self) -> str:
        return f"{self.number:06d}"

    def compute(self) -> Arrays:
        own = read_members(self.files, self.blocks[0], self.alive)
        others = (read_members(self.files, block, self.alive) for block in self.blocks[1:])
        pairs = [self._pair(own, None), *(self._pair(own, other) for other in others)]
        left, right = (np.concatenate([part[n] for part in pairs]) for n in (0, 1))
        return {"row": own.row, "distance": own.distance, "left": left, "right": right}

    def _pair(self, own: Members, other: Members | None) -> tuple[np.ndarray, np.ndarray]:
        """Return linked rows, or for SemDeDup the rows that are left out, twice."""
        rows = own.row if other is None else np.concatenate([own.row, other.row])
        if not len(own.row) or (other is not None and not len(other.row)):
            return rows[:0], rows[:0]
        if isinstance(self.step, NearDuplicatesStep):
            left, right = links(own.image, None if other is None else other.image, self.step.threshold)
            return rows[left], rows[right]
        assert isinstance(self.step, SemDeDupStep)
        cosine = own.cosine if other is None else np.concatenate([own.cosine, other.cosine])
        order = order_of(cosine, rows, self.step.first)
        image = own.image if other is None else other.image
        a, b = beaten(own.image, order[: len(own.row)], image, order[-len(image) :], self.step.threshold)
        out = own.row[a] if other is None else np.concatenate([own.row[a], other.row[b]])
        return out, out


@dataclass(frozen=True)
class _Together:
    """What is kept of a large cluster, from what its blocks' tasks found."""

    number: int
    blocks: tuple[Location, ...]
    step: WithinStep

    @property
    def name(self) -> str:
        return f"{self.number:06d}"

    def compute(self) -> Arrays:
        files: Sequence[ArrayFile] = [ArrayFile(location) for location in self.blocks]
        row, distance, left, right = (
            np.concatenate([file.read(name) for file in files]) for name in ("row", "distance", "left", "right")
        )
        order = np.argsort(row)
        row, distance = row[order], distance[order]
        if isinstance(self.step, NearDuplicatesStep):
            label = components(len(row), np.searchsorted(row, left), np.searchsorted(row, right))
            return {"row": row[chosen(label, distance, self.step.keep)], **largest(label, row)}
        return {"row": np.setdiff1d(row, left)}
