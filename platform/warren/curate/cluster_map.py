"""A map of the largest clusters for a report: where they lie, how large they are, and how much of each was kept."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from warren.curate.array_files import ArrayFile, Arrays
from warren.curate.clusters import Clusters
from warren.curate.kmeans import Centroids
from warren.curate.row_mask import StoredRows
from warren.curate.tasks import NumberedTask, Runner, Workspace, finish
from warren.storage import Location

_SHOWN = 400  # clusters
_PICTURED = 16  # of these, clusters that are shown with an image
_APART = 0.13  # of the map's extent, the least distance of two clusters that are shown with an image


@dataclass(frozen=True)
class ClusterMap:
    """The largest clusters.

    Attributes:
        points: (n, 2), the first two principal components of the centroids, scaled to 0 to 1.
        sizes: Samples of each when they were clustered.
        kept: Samples of each that are in the selection.
        num_clusters: All clusters, with those that are not shown.
        examples: By place in `points`, the row nearest to the centroid of a cluster that is shown with an image.
    """

    points: np.ndarray
    sizes: np.ndarray
    kept: np.ndarray
    num_clusters: int
    examples: dict[int, int]


def cluster_map(run: Runner, work: Workspace, clusters: Clusters, selected: Location) -> ClusterMap:
    """Return the map of clusters.

    Args:
        selected: The stored set of the rows that are in the selection.
    """
    shown = np.argsort(-clusters.counts, kind="stable")[:_SHOWN]
    shown = shown[clusters.counts[shown] > 0]
    points = _principal_components(Centroids.read(ArrayFile(clusters.centroids)).fine[shown])
    pictured = _spread(points)
    tasks = [
        _CountKept(number, file, selected, tuple(shown.tolist()), tuple(pictured))
        for number, file in enumerate(clusters.files)
    ]
    files = finish(run, work, tasks)
    distances, rows = (np.stack([file.read(name) for file in files]) for name in ("distance", "row"))
    nearest = rows[distances.argmin(axis=0), np.arange(len(pictured))]
    return ClusterMap(
        points,
        clusters.counts[shown],
        np.sum([file.read("kept") for file in files], axis=0),
        len(clusters.counts),
        dict(zip(pictured, nearest.tolist(), strict=True)),
    )


@dataclass(frozen=True)
class _CountKept(NumberedTask):
    """How many samples of each shown cluster a piece has in the selection, and the nearest to some centroids."""

    file: Location
    selected: Location
    shown: tuple[int, ...]
    pictured: tuple[int, ...]

    def compute(self) -> Arrays:
        file = ArrayFile(self.file)
        starts, rows = file.read("starts"), file.read("row")
        # A cluster's samples are neighbours in the file, so a difference of sums counts those that were kept.
        before = np.r_[0, np.cumsum(StoredRows(self.selected).contains(rows))]
        shown = np.array(self.shown, np.int64)
        distance, nearest = np.full(len(self.pictured), np.inf), np.zeros(len(self.pictured), np.int64)
        for place, number in enumerate(shown[list(self.pictured)].tolist()):
            first, stop = starts[number : number + 2].tolist()
            if first < stop:
                distances = file.read("distance", first, stop)
                distance[place], nearest[place] = distances.min(), rows[first + int(distances.argmin())]
        return {"kept": before[starts[shown + 1]] - before[starts[shown]], "distance": distance, "row": nearest}


def _principal_components(centroids: np.ndarray) -> np.ndarray:
    """Return the first two principal components, scaled to 0 to 1."""
    centred = centroids.astype(np.float64) - centroids.mean(axis=0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
    largest = np.abs(axes).argmax(axis=1)
    axes *= np.sign(axes[np.arange(len(axes)), largest])[:, None]  # a component's sign is arbitrary
    points = np.zeros((len(centroids), 2))
    points[:, : len(axes)] = centred @ axes.T
    return np.asarray((points - points.min(axis=0)) / np.maximum(np.ptp(points, axis=0), 1e-9))


def _spread(points: np.ndarray) -> Sequence[int]:
    """Return places that lie apart, from the largest cluster on."""
    chosen: list[int] = []
    for place in range(len(points)):
        if len(chosen) == _PICTURED:
            break
        if all(np.linalg.norm(points[place] - points[other]) >= _APART for other in chosen):
            chosen.append(place)
    return chosen
