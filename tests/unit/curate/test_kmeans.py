"""K-means in tasks: it finds groups, repeats itself, and holds no more than its memory, on one level and on two."""

from pathlib import Path

import numpy as np
import pytest

from warren.config.curate import ClusterStep
from warren.curate import kmeans_tasks
from warren.curate.array_files import ArrayFile
from warren.curate.kmeans import Centroids
from warren.curate.kmeans_tasks import train_centroids
from warren.curate.row_mask import RowSet
from warren.curate.sample_vectors import ComputedVectors
from warren.curate.tasks import Workspace, run_here
from warren.curate.vector_math import unit
from warren.errors import DataError
from warren.storage import Location

WIDTH, OF_EACH = 16, 20


@pytest.fixture
def work(tmp_path: Path) -> Workspace:
    return Workspace(Location(str(tmp_path)))


def trained(
    work: Workspace,
    vectors: np.ndarray,
    num_clusters: int,
    cuts: int = 3,
    memory: int = 1 << 30,
) -> Centroids:
    """Train on vectors that are stored in some pieces, one of which is empty."""
    work = work / f"{num_clusters}-{cuts}-{memory}"
    pieces = []
    for number, rows in enumerate([*np.array_split(np.arange(len(vectors)), cuts), np.empty(0, np.int64)]):
        image = vectors[rows] if len(rows) else np.empty((0, 1), np.float32)
        work.put(f"piece-{number}", {"row": rows.astype(np.uint32), "image": image})
        pieces.append(ComputedVectors(work.file(f"piece-{number}").location))
    selected = work.folder / "selected"
    selected.put_bytes(RowSet.full(len(vectors)).to_bytes())
    step = ClusterStep(step="cluster", seed=4)
    made = train_centroids(run_here, work, step, num_clusters, pieces, selected, len(vectors), memory)
    return Centroids.read(ArrayFile(made))


def groups(count: int, spread: float = 0.01) -> np.ndarray:
    random = np.random.default_rng(2)
    centres = random.standard_normal((count, WIDTH))
    vectors = np.repeat(centres, OF_EACH, axis=0) + spread * random.standard_normal((OF_EACH * count, WIDTH))
    return unit(vectors)


@pytest.mark.parametrize("num_clusters", [7, 300])
def test_planted_groups_are_found_however_the_work_is_cut(
    num_clusters: int, work: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kmeans_tasks, "_FLAT_CLUSTERS", 100)
    vectors = groups(num_clusters)
    first = trained(work, vectors, num_clusters)
    least = len(vectors) * WIDTH * 12 if num_clusters == 7 else 200_000
    for cuts, memory in ((1, 1 << 30), (5, least)):
        again = trained(work, vectors, num_clusters, cuts, memory)
        assert np.array_equal(first.fine, again.fine)
    assert first.fine.shape == (num_clusters, WIDTH)
    assert np.diff(first.starts).sum() == num_clusters
    cluster = first.assign(vectors).reshape(num_clusters, OF_EACH)
    assert (cluster == cluster[:, :1]).mean() > 0.9  # k-means may split a group


@pytest.mark.parametrize("flat", [10, 1000])
def test_fewer_different_embeddings_than_clusters_are_counted(
    flat: int, work: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kmeans_tasks, "_FLAT_CLUSTERS", flat)
    with pytest.raises(DataError, match=r"50 clusters are asked for, but there are 3 different embeddings in 3000 sam"):
        trained(work, unit(np.repeat(np.eye(3, WIDTH), 1000, axis=0)), 50)


@pytest.mark.parametrize("flat", [10, 1000])
def test_a_sample_that_does_not_fit_is_named_with_what_it_takes(
    flat: int, work: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kmeans_tasks, "_FLAT_CLUSTERS", flat)
    # on two levels only the largest coarse cluster must fit
    memory = 300_000 if flat == 1000 else 10_000
    with pytest.raises(DataError, match=r"k-means on \d+ samples of 16 numbers takes \d+ MiB, .* samples_per_cluster"):
        trained(work, groups(100), 100, memory=memory)


def test_of_a_large_coarse_cluster_a_part_is_trained_on(work: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmeans_tasks, "_FLAT_CLUSTERS", 10)
    monkeypatch.setattr(kmeans_tasks, "_MOST_SAMPLES", 60)
    vectors = groups(40, spread=0.3)
    made = trained(work, vectors, 40, memory=60 * WIDTH * 12)
    assert made.fine.shape == (40, WIDTH)
    assert np.isfinite(made.fine).all()
