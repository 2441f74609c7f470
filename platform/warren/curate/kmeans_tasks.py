"""Training of k-means in tasks, so that none holds more of the sample than fits into its memory.

Up to 1,024 clusters are trained at once. More have two levels: √k coarse clusters are trained on a part of the sample,
and the sample is sorted by them. The samples of each coarse cluster are then clustered again, into a number of clusters
in proportion to its samples. A few iterations over all fine centroids move each to the mean of its samples. At the end
the fine centroids are grouped anew.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from warren.config.curate import ClusterStep
from warren.curate.array_files import ArrayFile, Arrays
from warren.curate.kmeans import Centroids, check_enough, divide, grouped, lloyd, nearest, train
from warren.curate.sample_vectors import VectorPiece, selected_vectors
from warren.curate.sampling import row_hash
from warren.curate.tasks import NumberedTask, Runner, Workspace, finish
from warren.curate.vector_math import unit
from warren.errors import DataError
from warren.storage import Location

_FLAT_CLUSTERS = 1024  # more clusters than this have two levels
_SAMPLES_PER_COARSE_CLUSTER = 256
_MOST_SAMPLES = 65_536  # of one coarse cluster
_REFINEMENTS = 3
_NUMBER_BYTES = 12  # memory of one number of an embedding: as stored, sorted, and of unit length in float32


def train_centroids(
    run: Runner,
    work: Workspace,
    step: ClusterStep,
    num_clusters: int,
    pieces: Sequence[VectorPiece],
    selected: Location,
    count: int,
    memory: int,
) -> Location:
    """Train on a sample that the step's seed draws, and return the file of centroids.

    Args:
        selected: The stored set of selected samples.
        count: Their number.
        memory: Bytes that a task may use.

    Raises:
        DataError: There are fewer different embeddings than clusters, or the sample takes more memory.
    """
    share = min(1.0, num_clusters * step.samples_per_cluster / max(1, count))
    drawn = finish(
        run, work / "sample", [_Draw(n, piece, selected, share, step.seed) for n, piece in enumerate(pieces)]
    )
    files = tuple(file.location for file in drawn)
    if num_clusters <= _FLAT_CLUSTERS:
        _check_memory(sum(file.rows("row") for file in drawn), _width(drawn), memory)
        return finish(run, work / "kmeans", [_Train(files, num_clusters, 1.0, step.iterations, step.seed)])[0].location
    return _two_levels(run, work / "kmeans", step, num_clusters, files, count, memory)


def _two_levels(
    run: Runner,
    work: Workspace,
    step: ClusterStep,
    num_clusters: int,
    drawn: tuple[Location, ...],
    count: int,
    memory: int,
) -> Location:
    num_coarse = round(num_clusters**0.5)
    share = min(1.0, num_coarse * _SAMPLES_PER_COARSE_CLUSTER / max(1, count))
    coarse = finish(run, work, [_TrainCoarse(drawn, num_coarse, share, step.iterations, step.seed)])[0]
    sort = [_Sort(n, file, coarse.location) for n, file in enumerate(drawn)]
    parts = tuple(file.location for file in finish(run, work / "sorted", sort))
    shares = finish(run, work, [_Divide(parts, num_clusters)])[0].read("share")
    buckets = _buckets(parts, memory)
    fine = [_TrainFine(n, parts, bucket, shares, step) for n, bucket in enumerate(buckets)]
    trained = finish(run, work / "fine", fine)
    full = shares > 0
    centroids = Centroids(
        np.concatenate([file.read("fine") for file in trained]),
        coarse.read("coarse")[full],
        np.r_[0, np.cumsum(shares[full])],
    )
    work.put("centroids-0", centroids.to_arrays())
    for number in range(_REFINEMENTS):
        before = work.file(f"centroids-{number}").location
        sums = [_Sum(n, parts, bucket, before, step.seed) for n, bucket in enumerate(buckets)]
        summed = finish(run, work / f"sums-{number}", sums)
        finish(run, work, [_Average(number + 1, before, tuple(file.location for file in summed))])
    last = work.file(f"centroids-{_REFINEMENTS}").location
    return finish(run, work, [_Group(last, num_coarse, step.iterations, step.seed)])[0].location


def _check_memory(rows: int, width: int, memory: int) -> None:
    needed = rows * width * _NUMBER_BYTES
    if needed > memory:
        raise DataError(
            f"k-means on {rows} samples of {width} numbers takes {needed >> 20} MiB, and task_memory_mib is "
            f"{memory >> 20}: raise it to {(needed >> 20) + 1}, or lower the cluster step's samples_per_cluster"
        )


def _buckets(parts: Sequence[Location], memory: int) -> list[tuple[int, int]]:
    """Group consecutive coarse clusters whose samples fit into a task's memory together."""
    files = [ArrayFile(part) for part in parts]
    counts = np.minimum(_counts(files), _MOST_SAMPLES)
    width = _width(files)
    _check_memory(int(counts.max()), width, memory)
    limit = memory // (width * _NUMBER_BYTES)
    edges, size = [0], 0
    for number, count in enumerate(counts.tolist()):
        if size and size + count > limit:
            edges.append(number)
            size = 0
        size += count
    return list(zip(edges, [*edges[1:], len(counts)], strict=True))


def _width(files: Sequence[ArrayFile]) -> int:
    """Return the length of an embedding; a file without embeddings does not know it."""
    return max(file.width("image") for file in files)


def _counts(files: Sequence[ArrayFile]) -> np.ndarray:
    return np.asarray(sum(np.diff(file.read("starts")) for file in files))


def _in_sample(rows: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Return a mask of the rows that are in a sample; a smaller share is a part of a larger one."""
    return row_hash(rows, seed) <= np.uint64(min(int(share * 2**64), 2**64 - 1))


@dataclass(frozen=True)
class _Draw(NumberedTask):
    """The part of a piece that k-means is trained on."""

    piece: VectorPiece
    selected: Location
    share: float
    seed: int

    def compute(self) -> Arrays:
        vectors = selected_vectors(self.piece, self.selected)
        mask = _in_sample(vectors.rows, self.share, self.seed)
        return {"row": vectors.rows[mask], "image": vectors.image[mask]}


def _gathered(parts: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Return the unit embeddings of rows and images in the order of rows, however they are cut into parts."""
    full = [part for part in parts if len(part[0])] or parts[:1]
    rows, images = (np.concatenate([part[n] for part in full]) for n in (0, 1))
    return unit(images[np.argsort(rows, kind="stable")])


@dataclass(frozen=True)
class _TrainingTask:
    """A task that trains centroids on a share of the drawn samples."""

    drawn: tuple[Location, ...]
    num_clusters: int
    share: float
    iterations: int
    seed: int

    def sample(self) -> np.ndarray:
        parts = []
        for location in self.drawn:
            file = ArrayFile(location)
            rows = file.read("row")
            mask = _in_sample(rows, self.share, self.seed)
            parts.append((rows[mask], file.read("image")[mask]))
        return _gathered(parts)


class _Train(_TrainingTask):
    """All centroids, where one level is enough."""

    @property
    def name(self) -> str:
        return "centroids"

    def compute(self) -> Arrays:
        return train(self.sample(), self.num_clusters, self.iterations, self.seed).to_arrays()


class _TrainCoarse(_TrainingTask):
    """The coarse centroids."""

    @property
    def name(self) -> str:
        return "coarse"

    def compute(self) -> Arrays:
        sample = self.sample()
        check_enough(len(sample), self.num_clusters, len(sample))
        return {"coarse": lloyd(sample, self.num_clusters, self.iterations, self.seed)}


@dataclass(frozen=True)
class _Sort(NumberedTask):
    """A drawn piece, sorted by coarse cluster and row."""

    drawn: Location
    coarse: Location

    def compute(self) -> Arrays:
        file, coarse = ArrayFile(self.drawn), ArrayFile(self.coarse).read("coarse")
        rows, images = file.read("row"), file.read("image")
        number = nearest(unit(images), coarse) if len(rows) else np.empty(0, np.int64)
        order = np.lexsort((rows, number))
        digests = b"".join(hashlib.blake2b(image.tobytes(), digest_size=8).digest() for image in images[order])
        return {
            "row": rows[order],
            "image": images[order],
            "digest": np.frombuffer(digests, np.uint64),
            "starts": np.searchsorted(number[order], np.arange(len(coarse) + 1)),
        }


@dataclass(frozen=True)
class _Divide:
    """The number of fine clusters of each coarse cluster."""

    parts: tuple[Location, ...]
    num_clusters: int

    @property
    def name(self) -> str:
        return "shares"

    def compute(self) -> Arrays:
        files = [ArrayFile(part) for part in self.parts]
        counts = _counts(files)
        number = np.concatenate([np.repeat(np.arange(len(counts)), np.diff(file.read("starts"))) for file in files])
        digest = np.concatenate([file.read("digest") for file in files])
        order = np.lexsort((digest, number))
        number, digest = number[order], digest[order]
        is_new = np.r_[True, (number[1:] != number[:-1]) | (digest[1:] != digest[:-1])][: len(number)]
        different = np.bincount(number[is_new], minlength=len(counts))
        check_enough(int(different.sum()), self.num_clusters, len(number))
        most = np.minimum(different, _MOST_SAMPLES)
        return {"share": divide(counts, most, self.num_clusters)}


@dataclass(frozen=True)
class _CoarseTask(NumberedTask):
    """A task that reads the samples of the coarse clusters `bucket[0]` to `bucket[1] - 1`."""

    parts: tuple[Location, ...]
    bucket: tuple[int, int]

    def samples(self, seed: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield each coarse cluster that has samples, and their unit embeddings in the order of rows."""
        files = [ArrayFile(part) for part in self.parts]
        starts = [file.read("starts", self.bucket[0], self.bucket[1] + 1).tolist() for file in files]
        for place, number in enumerate(range(*self.bucket)):
            ranges = [(file, *each[place : place + 2]) for file, each in zip(files, starts, strict=True)]
            read = [(file, start, stop, file.read("row", start, stop)) for file, start, stop in ranges if start < stop]
            if not read:
                continue
            limit = _largest_hash([rows for *_, rows in read], seed)
            parts = []
            for file, start, stop, rows in read:
                mask = row_hash(rows, seed) <= limit
                parts.append((rows[mask], file.read("image", start, stop)[mask]))
            yield number, _gathered(parts)


def _largest_hash(rows: list[np.ndarray], seed: int) -> np.uint64:
    """Return the largest hash of the rows that are taken of a coarse cluster."""
    hashes = row_hash(np.concatenate(rows), seed)
    taken = min(len(hashes), _MOST_SAMPLES) - 1
    return np.uint64(np.partition(hashes, taken)[taken])


@dataclass(frozen=True)
class _TrainFine(_CoarseTask):
    """The fine centroids of some coarse clusters."""

    shares: np.ndarray
    step: ClusterStep

    def compute(self) -> Arrays:
        seed, iterations = self.step.seed, self.step.iterations
        made = [
            lloyd(sample, int(self.shares[number]), iterations, seed + 1 + number)
            for number, sample in self.samples(seed)
        ]
        width = _width([ArrayFile(part) for part in self.parts])
        return {"fine": np.concatenate([np.empty((0, width), np.float32), *made])}


@dataclass(frozen=True)
class _Sum(_CoarseTask):
    """Sums of the samples of some coarse clusters by fine cluster, apart for each coarse cluster.

    So the total does not depend on how coarse clusters are grouped into tasks.
    """

    centroids: Location
    seed: int

    def compute(self) -> Arrays:
        centroids = Centroids.read(ArrayFile(self.centroids))
        width = centroids.fine.shape[1]
        clusters, sums, counts = [np.empty(0, np.int64)], [np.empty((0, width))], [np.empty(0, np.int64)]
        for _, sample in self.samples(self.seed):
            number = centroids.assign(sample)
            order = np.argsort(number, kind="stable")
            starts = np.flatnonzero(np.r_[True, np.diff(number[order]) != 0])
            clusters.append(number[order][starts])
            sums.append(np.add.reduceat(sample[order].astype(np.float64), starts, axis=0))
            counts.append(np.diff(np.r_[starts, len(number)]))
        return {"cluster": np.concatenate(clusters), "sum": np.concatenate(sums), "count": np.concatenate(counts)}


@dataclass(frozen=True)
class _Average:
    """The mean of each fine cluster's samples; a cluster without samples keeps its centroid."""

    number: int
    before: Location
    sums: tuple[Location, ...]

    @property
    def name(self) -> str:
        return f"centroids-{self.number}"

    def compute(self) -> Arrays:
        before = Centroids.read(ArrayFile(self.before))
        total, count = np.zeros(before.fine.shape), np.zeros(len(before.fine), np.int64)
        for location in self.sums:
            file = ArrayFile(location)
            cluster = file.read("cluster")
            np.add.at(total, cluster, file.read("sum"))
            np.add.at(count, cluster, file.read("count"))
        full = count > 0
        fine = before.fine.copy()
        fine[full] = total[full] / count[full, None]
        return Centroids(fine, before.coarse, before.starts).to_arrays()


@dataclass(frozen=True)
class _Group:
    """The centroids that samples are assigned to: the fine ones, grouped anew."""

    before: Location
    num_coarse: int
    iterations: int
    seed: int

    @property
    def name(self) -> str:
        return "centroids"

    def compute(self) -> Arrays:
        fine = ArrayFile(self.before).read("fine")
        return grouped(fine, self.iterations, self.seed, self.num_coarse).to_arrays()
