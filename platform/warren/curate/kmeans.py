"""K-means with faiss. Many clusters have two levels, so that a sample is compared with about √k centroids instead of k.

With two levels, the √k coarse clusters are trained first. The samples of each are then clustered again, into a number
of clusters in proportion to its samples. A sample belongs to the nearest fine centroid of its 8 nearest coarse
clusters: with only the nearest one, the borders of coarse clusters would separate near duplicates. A few iterations
over all fine centroids then move each to the mean of its samples.
"""

from dataclasses import dataclass, replace

import numpy as np

from warren.curate.array_files import ArrayFile, Arrays
from warren.errors import DataError

_FLAT_CLUSTERS = 1024  # more clusters than this have two levels
_PROBES = 8  # coarse clusters that are searched for the nearest fine centroid
_REFINEMENTS = 3
_ROWS = 4096  # rows that are compared with centroids at a time


@dataclass(frozen=True)
class Centroids:
    """Trained clusters.

    Attributes:
        fine: (k, width), the mean of each cluster's samples, not of unit length; grouped by coarse cluster.
        coarse: (c, width).
        starts: (c + 1,), the first fine centroid of each coarse cluster.
    """

    fine: np.ndarray
    coarse: np.ndarray
    starts: np.ndarray

    def to_arrays(self) -> Arrays:
        """Return the arrays of a file of centroids."""
        return {"fine": self.fine, "coarse": self.coarse, "starts": self.starts}

    @classmethod
    def read(cls, file: ArrayFile) -> "Centroids":
        """Read a file of centroids."""
        return cls(*(file.read(name) for name in ("fine", "coarse", "starts")))

    def assign(self, vectors: np.ndarray) -> np.ndarray:
        """Return the cluster of each row of unit vectors; the lowest of several at the same distance."""
        if len(self.coarse) == 1:
            return _nearest(vectors, self.fine)
        clusters = [self._probe(vectors[start : start + _ROWS * 8]) for start in range(0, len(vectors), _ROWS * 8)]
        return np.concatenate(clusters) if clusters else np.empty(0, np.int64)

    def _probe(self, vectors: np.ndarray) -> np.ndarray:
        """Return the nearest fine centroid among those of each row's nearest coarse clusters."""
        scores = vectors @ self.coarse.T - _half_squares(self.coarse)
        probes = min(_PROBES, len(self.coarse))
        # The score of each row's least of its nearest coarse clusters: whatever is above it is searched.
        lowest = np.partition(scores, -probes, axis=1)[:, -probes]
        best, cluster = np.full(len(vectors), -np.inf, np.float32), np.zeros(len(vectors), np.int64)
        # By coarse cluster and not by row, so that each step is one product of two matrices.
        for number in range(len(self.coarse)):
            rows = np.flatnonzero(scores[:, number] >= lowest)
            first, behind = self.starts[number : number + 2]
            products = vectors[rows] @ self.fine[first:behind].T - _half_squares(self.fine[first:behind])
            nearest = products.argmax(axis=1)
            score = products[np.arange(len(rows)), nearest]
            better = score > best[rows]
            best[rows[better]], cluster[rows[better]] = score[better], nearest[better] + first
        return cluster


def train(sample: np.ndarray, num_clusters: int, iterations: int, seed: int) -> Centroids:
    """Train k-means on a sample of unit vectors. The same sample and seed give the same centroids.

    Raises:
        DataError: There are fewer samples, or fewer different ones, than clusters.
    """
    # Counting different rows sorts the sample, which only a small sample can need.
    different = len(np.unique(sample, axis=0)) if len(sample) < 50 * num_clusters else len(sample)
    if different < num_clusters:
        raise DataError(
            f"{num_clusters} clusters are asked for, but there are {different} different embeddings in {len(sample)} "
            f"samples: set the step's num_clusters to {different} at most"
        )
    if num_clusters <= _FLAT_CLUSTERS:
        fine = _train(sample, num_clusters, iterations, seed)
        return Centroids(fine, fine.mean(axis=0, keepdims=True), np.array([0, num_clusters]))
    coarse = _train(sample, round(num_clusters**0.5), iterations, seed)
    nearest = _nearest(sample, coarse)
    counts = np.bincount(nearest, minlength=len(coarse))
    shares = _shares(counts, num_clusters)
    parts = [
        _train(sample[nearest == number], int(share), iterations, seed + 1 + number)
        for number, share in enumerate(shares)
    ]
    made = Centroids(np.concatenate(parts), coarse, np.r_[0, np.cumsum(shares)])
    for _ in range(_REFINEMENTS):
        made = replace(made, fine=_means(sample, made.assign(sample), made.fine))
    return made


def _means(sample: np.ndarray, cluster: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Return the mean of each cluster's samples; a cluster without samples keeps its centroid."""
    # Sorted by cluster, so that one `reduceat` adds up all clusters.
    order = np.argsort(cluster, kind="stable")
    edges = np.searchsorted(cluster[order], np.arange(len(before) + 1))
    full = np.flatnonzero(np.diff(edges))
    means = before.copy()
    sums = np.add.reduceat(sample[order].astype(np.float64), edges[full], axis=0)
    means[full] = sums / np.diff(edges)[full, None]
    return means


def _shares(counts: np.ndarray, total: int) -> np.ndarray:
    """Divide `total` clusters in proportion to samples: at least one each, and never more clusters than samples."""
    shares = np.minimum(np.maximum(1, counts * total // counts.sum()), np.maximum(1, counts))
    rest = total - int(shares.sum())
    order = np.argsort(-counts, kind="stable")
    # Rounding and the limits above leave a rest; the clusters with most samples give or take one each.
    while rest:
        step = 1 if rest > 0 else -1
        for number in order:
            able = shares[number] < counts[number] if step > 0 else shares[number] > 1
            if rest and able:
                shares[number] += step
                rest -= step
    return np.asarray(shares)


def _train(sample: np.ndarray, num_clusters: int, iterations: int, seed: int) -> np.ndarray:
    import faiss

    if len(sample) == 0:
        raise DataError("a coarse cluster has no samples: raise the step's samples_per_cluster")
    kmeans = faiss.Kmeans(
        sample.shape[1],
        num_clusters,
        niter=iterations,
        # faiss keeps the seed in a signed 32-bit number.
        seed=seed % 2**31,
        # faiss's own limits, 39 and 256 samples a centroid, are off: the sample was drawn before.
        min_points_per_centroid=1,
        max_points_per_centroid=2**30 // num_clusters,
    )
    kmeans.train(np.ascontiguousarray(sample, np.float32))
    return np.asarray(kmeans.centroids, np.float32).reshape(num_clusters, -1)


def _half_squares(centroids: np.ndarray) -> np.ndarray:
    """Return half of each centroid's squared length: the product minus this is highest for the nearest centroid."""
    return np.asarray(np.einsum("ij,ij->i", centroids, centroids) / 2)


def _nearest(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Return the nearest centroid of each row by Euclidean distance."""
    half_squares = _half_squares(centroids)
    nearest = np.empty(len(vectors), np.int64)
    for start in range(0, len(vectors), _ROWS):
        products = vectors[start : start + _ROWS] @ centroids.T
        products -= half_squares
        nearest[start : start + _ROWS] = products.argmax(axis=1)
    return nearest
