"""Near duplicates and SemDeDup: a cluster that is cut into blocks gives what it gives as a whole."""

from pathlib import Path

import numpy as np
import pytest

from warren.config.curate import BalanceStep, NearDuplicatesStep, SemDeDupStep
from warren.curate.cluster_steps import ClusterwiseStep, keep_in_clusters
from warren.curate.clusters import Clusters
from warren.curate.embedding_duplicates import chosen, components, links
from warren.curate.row_mask import RowSet
from warren.curate.semdedup import close_to_earlier, order_of
from warren.curate.tasks import Workspace, run_here
from warren.curate.vector_math import unit
from warren.storage import Location

WIDTH = 8


def clustered(work: Workspace, image: np.ndarray, cluster: np.ndarray, num_files: int = 3) -> Clusters:
    """Write samples as files of clusters; rows are spread over the files."""
    of_file = np.random.default_rng(0).integers(0, num_files, len(image))
    centroids = np.stack([image[cluster == n].mean(axis=0) for n in range(cluster.max() + 1)])
    for number in range(num_files):
        rows = np.flatnonzero(of_file == number)
        rows = rows[np.lexsort((rows, cluster[rows]))]
        near = centroids[cluster[rows]]
        arrays = {"row": rows.astype(np.uint32), "cluster": cluster[rows].astype(np.int32), "image": image[rows]}
        arrays |= {"distance": np.linalg.norm(image[rows] - near, axis=1), "cosine": (image[rows] * near).sum(axis=1)}
        work.put(str(number), {**arrays, "starts": np.searchsorted(cluster[rows], np.arange(len(centroids) + 1))})
    files = tuple(work.file(str(number)).location for number in range(num_files))
    starts = np.array([0, len(centroids)])
    work.put("centroids", {"fine": centroids, "coarse": centroids[:1], "starts": starts})
    return Clusters(files, np.bincount(cluster), 100, work.file("centroids").location)


@pytest.fixture
def work(tmp_path: Path) -> Workspace:
    return Workspace(Location(str(tmp_path)))


def kept(work: Workspace, clusters: Clusters, step: ClusterwiseStep, rows: int, memory: int) -> list[int]:
    alive = RowSet.full(rows)
    location = work.folder / "alive"
    location.put_bytes(alive.to_bytes())
    result = keep_in_clusters(run_here, work / f"{step.step}-{memory}", step, clusters, location, rows, memory)
    return [int(row) for block in result.blocks() for row in block]


@pytest.mark.parametrize(
    "step",
    [
        NearDuplicatesStep(step="near_duplicates", threshold=0.9),
        NearDuplicatesStep(step="near_duplicates", threshold=0.9, keep="farthest"),
        SemDeDupStep(step="semdedup", threshold=0.9),
        SemDeDupStep(step="semdedup", threshold=0.9, first="nearest"),
        BalanceStep(step="balance", samples_per_cluster=9),
    ],
)
def test_no_pair_is_lost_across_the_cut_of_a_large_cluster(work: Workspace, step: ClusterwiseStep) -> None:
    random = np.random.default_rng(1)
    image = unit(
        np.repeat(random.standard_normal((60, WIDTH)), 5, axis=0) + 0.25 * random.standard_normal((300, WIDTH))
    )
    clusters = clustered(work, image, np.array([0] * 220 + [1] * 30 + [2] * 50))
    whole = kept(work, clusters, step, 300, memory=1 << 20)
    assert 0 < len(whole) < 300
    for memory in (6000, 1500):  # 60 and 15 samples
        assert kept(work, clusters, step, 300, memory) == whole


def test_components_are_transitive_and_the_median_stays() -> None:
    label = components(6, np.array([4, 1]), np.array([1, 3]))
    assert label.tolist() == [0, 1, 2, 1, 1, 5]
    distance = np.array([0.0, 0.3, 0.0, 0.1, 0.2, 0.0])
    assert chosen(label, distance, "median").tolist() == [0, 2, 4, 5]  # n // 2 of three: the second
    assert chosen(label, distance, "nearest").tolist() == [0, 2, 3, 5]
    assert chosen(label, distance, "farthest").tolist() == [0, 1, 2, 5]
    assert chosen(np.zeros(4, int), np.ones(4), "median").tolist() == [2]  # equal distances: by row


def test_thousands_of_equal_images_are_one_component_in_few_pairs() -> None:
    image = unit(np.ones((3000, WIDTH)))
    left, right = links(image, None, 0.86)
    assert len(left) < 5 * 3000
    assert set(components(3000, left, right)) == {0}


def test_semdedup_leaves_out_what_is_close_to_something_before_it() -> None:
    angles = np.radians([0, 10, 20, 90])
    image = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    order = order_of(np.array([0.9, 0.8, 0.7, 0.1]), np.arange(4), "farthest")
    assert order.tolist() == [3, 2, 1, 0]
    assert close_to_earlier(image, order, image, order, np.cos(np.radians(15)))[0].tolist() == [
        True,
        True,
        False,
        False,
    ]
