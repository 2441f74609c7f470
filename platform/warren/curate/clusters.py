"""Clusters of samples. Each piece of the embeddings is stored again, sorted by cluster.

A task of a later step reads one bucket: neighbouring clusters that fit into its memory together. A cluster that does
not fit is a bucket of its own, and is read in blocks.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from warren.config.curate import ClusterStep
from warren.curate.array_files import ArrayFile, Arrays
from warren.curate.kmeans import Centroids, train
from warren.curate.row_mask import RowSet, StoredRows
from warren.curate.sample_vectors import VectorPiece, Vectors
from warren.curate.sampling import row_hash
from warren.curate.tasks import NumberedTask, Runner, Workspace, finish
from warren.curate.vector_math import cosines, unit
from warren.errors import DataError
from warren.storage import Location

_SAMPLES_PER_CLUSTER = 1000
_READS = 16


@dataclass(frozen=True)
class Bucket:
    """Clusters `first` to `stop - 1`, and their rows in each file."""

    first: int
    stop: int
    ranges: tuple[tuple[int, int], ...]

    @property
    def count(self) -> int:
        """Number of samples."""
        return sum(stop - start for start, stop in self.ranges)


@dataclass(frozen=True)
class Clusters:
    """Clustered samples.

    Attributes:
        files: One for each piece: `row`, `cluster`, `cosine` and `distance` to the centroid, `score` (cosine of image
            and text) and `image`, all sorted by cluster and row, and `starts` of each cluster.
        counts: Number of samples of each cluster.
        row_bytes: Memory that one sample takes.
        centroids: The file of the centroids.
    """

    files: tuple[Location, ...]
    counts: np.ndarray
    row_bytes: int
    centroids: Location

    def buckets(self, memory_bytes: int) -> list[Bucket]:
        """Group clusters into buckets of at most `memory_bytes`; a larger cluster is a bucket of its own."""
        # Clusters stay in their order, so that a bucket is one range of rows in each file.
        limit = max(1, memory_bytes // self.row_bytes)
        edges, size = [0], 0
        for cluster, count in enumerate(self.counts.tolist()):
            if size and size + count > limit:
                edges.append(cluster)
                size = 0
            size += count
        edges.append(len(self.counts))
        places = [ArrayFile(file).read("starts")[edges].tolist() for file in self.files]
        return [
            Bucket(edges[n], edges[n + 1], tuple((place[n], place[n + 1]) for place in places))
            for n in range(len(edges) - 1)
        ]


@dataclass(frozen=True)
class Members:
    """Samples of a bucket, sorted by cluster and row; `image` has unit rows in float32, or is empty."""

    row: np.ndarray
    cluster: np.ndarray
    distance: np.ndarray
    cosine: np.ndarray
    image: np.ndarray

    def clusters(self) -> Iterator[slice]:
        """Yield the slice of each cluster."""
        edges = np.flatnonzero(np.diff(self.cluster)) + 1
        for start, stop in zip([0, *edges.tolist()], [*edges.tolist(), len(self.row)], strict=True):
            yield slice(start, stop)


def read_members(
    files: Sequence[Location], ranges: Sequence[tuple[int, int]], selected: Location, images: bool = True
) -> Members:
    """Read the selected samples in these ranges of the files."""

    def read(file: Location, start: int, stop: int) -> list[np.ndarray]:
        array = ArrayFile(file)
        names = ["row", "cluster", "distance", "cosine", *(["image"] if images else [])]
        parts = [array.read(name, start, stop) for name in names]
        mask = StoredRows(selected).contains(parts[0])
        return [part[mask] for part in parts]

    reads = [(file, *each) for file, each in zip(files, ranges, strict=True) if each[0] < each[1]]
    with ThreadPoolExecutor(_READS) as pool:
        parts = list(pool.map(lambda each: read(*each), reads))
    if not parts:
        nothing = np.empty(0, np.int64)
        return Members(nothing, nothing, np.empty(0), np.empty(0), np.empty((0, 1), np.float32))
    row, cluster, *rest = (np.concatenate([part[n] for part in parts]) for n in range(len(parts[0])))
    order = np.lexsort((row, cluster))
    image = unit(rest[2][order]) if images else np.empty((len(row), 0), np.float32)
    return Members(row[order], cluster[order], rest[0][order], rest[1][order], image)


def cluster(
    run: Runner, work: Workspace, step: ClusterStep, pieces: Sequence[VectorPiece], selected: Location, count: int
) -> Clusters:
    """Cluster the selected samples.

    Args:
        selected: The stored set of selected samples.
        count: Their number.

    Raises:
        DataError: There are fewer samples than clusters, or an assigned cluster has no centroid.
    """
    if step.assigned:
        centroids = _assigned_centroids(run, work, step, pieces, selected)
    else:
        num_clusters = step.num_clusters or max(1, count // _SAMPLES_PER_CLUSTER)
        # K-means needs some samples of each cluster, not all of them, and its sample has to fit into memory.
        share = min(1.0, num_clusters * step.samples_per_cluster / max(1, count))
        drawn = finish(run, work / "sample", [_Draw(n, p, selected, share, step.seed) for n, p in enumerate(pieces)])
        locations = tuple(file.location for file in drawn)
        trained = finish(run, work / "kmeans", [_Train(locations, num_clusters, step.iterations, step.seed)])
        centroids = trained[0].location
    assigned = [_Assign(n, piece, selected, centroids, step.assigned) for n, piece in enumerate(pieces)]
    files = finish(run, work / "assigned", assigned)
    counts = sum(np.diff(file.read("starts")) for file in files)
    # A task holds an embedding three times in float32 (as read, sorted, of unit length), and the other columns.
    row_bytes = 3 * 4 * files[0].width("image") + 64
    return Clusters(tuple(file.location for file in files), np.asarray(counts), row_bytes, centroids)


def without(clusters: Clusters, dropped: tuple[int, ...], selected: RowSet) -> RowSet:
    """Return the selected samples without those of the `dropped` clusters.

    Raises:
        DataError: One of these clusters does not exist.
    """
    unknown = [number for number in dropped if not 0 <= number < len(clusters.counts)]
    if unknown:
        raise DataError(f"drop_clusters: there is no cluster {unknown[0]}; there are 0 to {len(clusters.counts) - 1}")
    kept = RowSet.empty(selected.num_rows)
    for location in clusters.files:
        file = ArrayFile(location)
        starts = file.read("starts")
        mask = np.ones(file.rows("row"), bool)
        for number in dropped:
            mask[starts[number] : starts[number + 1]] = False
        kept.add(file.read("row")[mask].astype(np.int64))
    return kept


def _selected(piece: VectorPiece, selected: Location) -> Vectors:
    vectors = piece.load()
    mask = StoredRows(selected).contains(vectors.rows)
    if mask.all():
        return vectors
    parts = (None if part is None else part[mask] for part in (vectors.image, vectors.text, vectors.cluster))
    return Vectors(vectors.rows[mask], *parts)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Draw(NumberedTask):
    """The part of a piece that k-means is trained on."""

    piece: VectorPiece
    selected: Location
    share: float
    seed: int

    def compute(self) -> Arrays:
        vectors = _selected(self.piece, self.selected)
        # By a hash of the row, so that the draw does not depend on how rows are cut into pieces.
        mask = row_hash(vectors.rows, self.seed) <= np.uint64(min(int(self.share * 2**64), 2**64 - 1))
        return {"row": vectors.rows[mask], "image": vectors.image[mask]}


@dataclass(frozen=True)
class _Train:
    drawn: tuple[Location, ...]
    num_clusters: int
    iterations: int
    seed: int

    @property
    def name(self) -> str:
        return "centroids"

    def compute(self) -> Arrays:
        files = [ArrayFile(location) for location in self.drawn]
        rows = np.concatenate([file.read("row") for file in files])
        images = np.concatenate([file.read("image") for file in files])
        order = np.argsort(rows, kind="stable")  # so that centroids do not depend on how files are cut into pieces
        return train(unit(images[order]), self.num_clusters, self.iterations, self.seed).to_arrays()


@dataclass(frozen=True)
class _Sum(NumberedTask):
    """The sum of a piece's embeddings for each assigned cluster."""

    piece: VectorPiece
    selected: Location

    def compute(self) -> Arrays:
        vectors = _selected(self.piece, self.selected)
        numbers = _assigned_clusters(vectors)
        size = int(numbers.max(initial=-1)) + 1
        total = np.zeros((size, vectors.image.shape[1]))
        np.add.at(total, numbers, unit(vectors.image))
        return {"sum": total, "count": np.bincount(numbers, minlength=size)}


def _assigned_clusters(vectors: Vectors) -> np.ndarray:
    assert vectors.cluster is not None
    if vectors.cluster.min(initial=0) < 0:
        raise DataError(
            f"{int((vectors.cluster < 0).sum())} assigned clusters are negative: number the clusters from 0"
        )
    return vectors.cluster


def _assigned_centroids(
    run: Runner, work: Workspace, step: ClusterStep, pieces: Sequence[VectorPiece], selected: Location
) -> Location:
    if step.centroids is not None:
        location = Location.parse(step.centroids)
        try:
            with location.open() as opened:
                fine = np.load(opened, allow_pickle=False).astype(np.float32)
        except ValueError as error:
            raise DataError(f"{location} is no .npy file of numbers: {error}") from None
    else:
        files = finish(run, work / "sums", [_Sum(n, piece, selected) for n, piece in enumerate(pieces)])
        size = max(file.rows("sum") for file in files)
        total, count = np.zeros((size, files[0].width("sum"))), np.zeros(size, np.int64)
        for file in files:
            total[: file.rows("sum")] += file.read("sum")
            count[: file.rows("count")] += file.read("count")
        fine = (total / np.maximum(count, 1)[:, None]).astype(np.float32)
    made = Centroids(fine, fine[:1], np.array([0, len(fine)]))
    work.put("given", made.to_arrays())
    return work.file("given").location


@dataclass(frozen=True)
class _Assign(NumberedTask):
    """A piece's samples, sorted by cluster."""

    piece: VectorPiece
    selected: Location
    centroids: Location
    assigned: bool

    def compute(self) -> Arrays:
        vectors = _selected(self.piece, self.selected)
        centroids = Centroids.read(ArrayFile(self.centroids))
        image = unit(vectors.image) if len(vectors.rows) else np.empty((0, centroids.fine.shape[1]), np.float32)
        number = _assigned_clusters(vectors) if self.assigned else centroids.assign(image)
        if number.max(initial=0) >= len(centroids.fine):
            raise DataError(f"cluster {number.max()} has no centroid: there are {len(centroids.fine)} centroids")
        order = np.lexsort((vectors.rows, number))
        number, image = number[order], image[order]
        of_each = centroids.fine[number].astype(np.float64)
        # A centroid is a mean, so it is shorter than the unit vectors that it is the mean of.
        lengths = np.linalg.norm(of_each, axis=1)
        score = np.full(len(number), np.nan, np.float32)
        if vectors.text is not None and len(number):
            score = cosines(image, unit(vectors.text[order])).astype(np.float32)
        return {
            "row": vectors.rows[order],
            "cluster": number.astype(np.int32),
            "distance": np.linalg.norm(image - of_each, axis=1),
            "cosine": (cosines(image, of_each) / np.maximum(lengths, 1e-12)).astype(np.float32),
            "score": score,
            "image": vectors.image[order],
            "starts": np.searchsorted(number, np.arange(len(centroids.fine) + 1)),
        }
