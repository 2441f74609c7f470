"""Steps that compare samples within a cluster: near duplicates, SemDeDup, and a balanced sample.

One task handles all clusters of a bucket, because they fit into its memory together. A cluster that does not fit is cut
into blocks. Every block is compared with itself and with each later block, so that no pair is missed. One task for each
block stores the pairs that it finds, and a last task combines them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from warren.config.curate import BalanceStep, NearDuplicatesStep, SemDeDupStep
from warren.curate.array_files import ArrayFile, Arrays
from warren.curate.clusters import Bucket, Clusters, Members, read_members
from warren.curate.embedding_duplicates import GROUPS_SHOWN, chosen, components, largest, links
from warren.curate.report import Groups
from warren.curate.row_mask import RowSet
from warren.curate.sampling import lowest_of_each
from warren.curate.semdedup import close_to_earlier, order_of
from warren.curate.tasks import NumberedTask, Runner, Task, Workspace, finish
from warren.storage import Location

ClusterwiseStep = NearDuplicatesStep | SemDeDupStep | BalanceStep
Ranges = tuple[tuple[int, int], ...]


def keep_in_clusters(
    run: Runner,
    work: Workspace,
    step: ClusterwiseStep,
    clusters: Clusters,
    selected: Location,
    num_rows: int,
    memory: int,
) -> RowSet:
    """Return the selected samples that a step keeps.

    Args:
        selected: The stored set of selected samples.
        num_rows: Rows of all datasets.
        memory: Bytes that a task may use.
    """
    tasks: list[Task] = []
    large: list[tuple[int, Bucket]] = []
    for number, bucket in enumerate(clusters.buckets(memory)):
        if bucket.count * clusters.row_bytes > memory and not isinstance(step, BalanceStep):
            large.append((number, bucket))
        else:
            tasks.append(_ReduceBucket(number, clusters.files, selected, step, bucket.ranges))
    for number, bucket in large:
        # A task holds two blocks at a time, so each gets half of its memory.
        blocks = _cut(bucket.ranges, max(1, memory // clusters.row_bytes // 2))
        # Block n is compared with itself and those behind it: each pair of blocks once.
        compare = [_CompareBlocks(n, clusters.files, selected, step, tuple(blocks[n:])) for n in range(len(blocks))]
        files = finish(run, work / f"blocks-{number:06d}", compare)
        tasks.append(_CombineBlocks(number, tuple(file.location for file in files), step))
    kept = RowSet.empty(num_rows)
    for file in finish(run, work / "buckets", tasks):
        kept.add(file.read("row").astype(np.int64))
    return kept


def _cut(ranges: Ranges, rows: int) -> list[Ranges]:
    """Cut a bucket into blocks of `rows` rows; a block has one range for each file, and most ranges are empty."""
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
class _ClusterTask(NumberedTask):
    """A task that reads clustered samples."""

    files: tuple[Location, ...]
    selected: Location
    step: ClusterwiseStep


@dataclass(frozen=True)
class _ReduceBucket(_ClusterTask):
    """The samples that a step keeps of a bucket."""

    ranges: Ranges

    def compute(self) -> Arrays:
        members = read_members(self.files, self.ranges, self.selected, images=not isinstance(self.step, BalanceStep))
        if isinstance(self.step, BalanceStep):
            mask = lowest_of_each(members.cluster, members.row, self.step.samples_per_cluster, self.step.seed)
            return {"row": np.sort(members.row[mask])}
        parts = [_of_cluster(members, where, self.step) for where in members.clusters()] if len(members.row) else []
        if not parts:
            return {"row": members.row}
        together = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return _largest_of({**together, "row": np.sort(together["row"])})


def _of_cluster(members: Members, where: slice, step: ClusterwiseStep) -> Arrays:
    """Return the rows that a step keeps of one cluster, and the largest groups of near duplicates."""
    image, row = members.image[where], members.row[where]
    if isinstance(step, NearDuplicatesStep):
        return _one_of_each_group(row, members.distance[where], *links(image, None, step.threshold), step)
    assert isinstance(step, SemDeDupStep)
    order = order_of(members.cosine[where], row, step.first)
    out, _ = close_to_earlier(image, order, image, order, step.threshold)
    return {"row": row[~out]}


def _one_of_each_group(
    row: np.ndarray, distance: np.ndarray, left: np.ndarray, right: np.ndarray, step: NearDuplicatesStep
) -> Arrays:
    """Return one row of each group of near duplicates, and the largest groups.

    Args:
        distance: Of each row to the centroid.
        left: Places of linked rows; `right` has the other row of each pair.
    """
    label = components(len(row), left, right)
    return {"row": row[chosen(label, distance, step.keep)], **largest(label, row)}


def _largest_of(arrays: Arrays) -> Arrays:
    """Keep the largest groups of several clusters, if the step makes groups."""
    if "sizes" not in arrays:
        return arrays
    best = np.argsort(-arrays["sizes"], kind="stable")[:GROUPS_SHOWN]
    return {**arrays, "groups": arrays["groups"][best], "sizes": arrays["sizes"][best]}


def largest_groups(work: Workspace) -> Groups:
    """Return size and first rows of the largest groups of near duplicates, from the results of `keep_in_clusters`."""
    files = [ArrayFile(location) for location in (work / "buckets").folder.list()]
    files = [file for file in files if "sizes" in file]
    if not files:
        return ()
    arrays = {name: np.concatenate([file.read(name) for file in files]) for name in ("groups", "sizes")}
    best = _largest_of(arrays)
    members = [tuple(row for row in group if row >= 0) for group in best["groups"].tolist()]
    return tuple(zip(best["sizes"].tolist(), members, strict=True))


@dataclass(frozen=True)
class _CompareBlocks(_ClusterTask):
    """The pairs of one block of a large cluster with itself and with each later block."""

    blocks: tuple[Ranges, ...]

    def compute(self) -> Arrays:
        own = read_members(self.files, self.blocks[0], self.selected)
        # A generator, so that only one other block is in memory at a time.
        others = (read_members(self.files, block, self.selected) for block in self.blocks[1:])
        pairs = [self._pair(own, None), *(self._pair(own, other) for other in others)]
        left, right = (np.concatenate([part[n] for part in pairs]) for n in (0, 1))
        return {"row": own.row, "distance": own.distance, "left": left, "right": right}

    def _pair(self, own: Members, other: Members | None) -> tuple[np.ndarray, np.ndarray]:
        """Return pairs of linked rows; for SemDeDup each row that is left out, paired with itself."""
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
        a, b = close_to_earlier(own.image, order[: len(own.row)], image, order[-len(image) :], self.step.threshold)
        out = own.row[a] if other is None else np.concatenate([own.row[a], other.row[b]])
        return out, out


@dataclass(frozen=True)
class _CombineBlocks(NumberedTask):
    """The samples that a step keeps of a large cluster, from the pairs of its blocks."""

    blocks: tuple[Location, ...]
    step: ClusterwiseStep

    def compute(self) -> Arrays:
        files: Sequence[ArrayFile] = [ArrayFile(location) for location in self.blocks]
        row, distance, left, right = (
            np.concatenate([file.read(name) for file in files]) for name in ("row", "distance", "left", "right")
        )
        order = np.argsort(row)
        row, distance = row[order], distance[order]
        if isinstance(self.step, NearDuplicatesStep):
            places = np.searchsorted(row, left), np.searchsorted(row, right)
            return _one_of_each_group(row, distance, *places, self.step)
        # SemDeDup's tasks return the rows to leave out, as pairs with themselves.
        return {"row": np.setdiff1d(row, left)}
