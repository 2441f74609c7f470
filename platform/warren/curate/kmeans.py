"""K-means with faiss. Many clusters have two levels, so that a sample is compared with about √k centroids instead of k.

With two levels, a sample belongs to the nearest fine centroid of its 16 nearest coarse clusters: with only the nearest
one, the borders of coarse clusters would separate near duplicates. `kmeans_tasks` trains both levels.
"""

from dataclasses import dataclass

import numpy as np

from warren.curate.array_files import ArrayFile, Arrays
from warren.errors import DataError

_PROBES = 16  # coarse clusters that are searched for the nearest fine centroid
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
            return nearest(vectors, self.fine)
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
            places = products.argmax(axis=1)
            score = products[np.arange(len(rows)), places]
            better = score > best[rows]
            best[rows[better]], cluster[rows[better]] = score[better], places[better] + first
        return cluster


def train(sample: np.ndarray, num_clusters: int, iterations: int, seed: int) -> Centroids:
    """Train k-means of one level on unit vectors. The same sample and seed give the same centroids.

    Raises:
        DataError: There are fewer samples, or fewer different ones, than clusters.
    """
    check_enough(num_different(sample, num_clusters), num_clusters, len(sample))
    fine = lloyd(sample, num_clusters, iterations, seed)
    return Centroids(fine, fine.mean(axis=0, keepdims=True), np.array([0, num_clusters]))


def num_different(sample: np.ndarray, enough: int) -> int:
    """Return the number of different rows; no more than `enough` are counted."""
    seen: set[bytes] = set()
    for row in sample:
        seen.add(row.tobytes())
        if len(seen) >= enough:
            break
    return len(seen)


def check_enough(different: int, num_clusters: int, num_samples: int) -> None:
    """Check that there are as many different embeddings as clusters.

    Raises:
        DataError: There are not.
    """
    if different < num_clusters:
        raise DataError(
            f"{num_clusters} clusters are asked for, but there are {different} different embeddings in {num_samples} "
            f"samples: set the step's num_clusters to {different} at most"
        )


def divide(counts: np.ndarray, most: np.ndarray, total: int) -> np.ndarray:
    """Divide `total` clusters in proportion to samples: at least one where there are samples, and at most `most`."""
    least = np.minimum(most, 1)
    shares = np.clip(counts * total // counts.sum(), least, most)
    rest = total - int(shares.sum())
    order = np.argsort(-counts, kind="stable")
    # Rounding and the limits above leave a rest; the clusters with most samples give or take one each.
    while rest:
        step = 1 if rest > 0 else -1
        for number in order:
            able = shares[number] < most[number] if step > 0 else shares[number] > least[number]
            if rest and able:
                shares[number] += step
                rest -= step
    return np.asarray(shares)


def lloyd(sample: np.ndarray, num_clusters: int, iterations: int, seed: int) -> np.ndarray:
    """Return the centroids of a sample, [num_clusters, width]."""
    import faiss

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


def grouped(fine: np.ndarray, iterations: int, seed: int, num_coarse: int) -> Centroids:
    """Group fine centroids by coarse clusters of their own, so that a sample's probes lead to the nearest one.

    Coarse clusters of the centroids are better for this than those of samples, which have more noise.
    """
    coarse = lloyd(fine, num_coarse, iterations, seed)
    number = nearest(fine, coarse)
    counts = np.bincount(number, minlength=num_coarse)
    full = counts > 0
    return Centroids(fine[np.argsort(number, kind="stable")], coarse[full], np.r_[0, np.cumsum(counts[full])])


def nearest(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Return the nearest centroid of each row by Euclidean distance."""
    half_squares = _half_squares(centroids)
    numbers = np.empty(len(vectors), np.int64)
    for start in range(0, len(vectors), _ROWS):
        products = vectors[start : start + _ROWS] @ centroids.T
        products -= half_squares
        numbers[start : start + _ROWS] = products.argmax(axis=1)
    return numbers
