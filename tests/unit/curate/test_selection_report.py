"""The report of a selection: what it shows, and the map of clusters."""

import re
from pathlib import Path

import numpy as np

from selecting import ROWS, STEPS, select, vectors, write_embeddings, write_pairs
from warren.config.curate import ClusterStep
from warren.curate.array_files import ArrayFile
from warren.curate.cluster_map import cluster_map
from warren.curate.clusters import cluster
from warren.curate.row_mask import RowSet
from warren.curate.sample_vectors import ComputedVectors
from warren.curate.tasks import Workspace, run_here
from warren.storage import Location


def test_the_report_shows_every_step_and_a_map_of_the_clusters(tmp_path: Path) -> None:
    root, embeddings = Location(str(tmp_path / "store")), write_embeddings(tmp_path / "embeddings")
    write_pairs(root)
    select(root, embeddings, STEPS)
    folder = Path(root.uri) / "datasets/chosen/v1"
    card = (folder / "README.md").read_text()
    shown = re.findall(r"^## (.*)\n\n!\[.*\]\((.*)\)$", card, re.MULTILINE)
    assert [title for title, _ in shown[:3]] == ["Samples after each step", "Clusters", "caption: images"]
    assert {"near_duplicates: largest groups", "rank_band-clip_score: scores"} <= {title for title, _ in shown}
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")} == {path for _, path in shown}


def test_the_map_counts_what_is_kept_of_each_cluster(tmp_path: Path) -> None:
    work = Workspace(Location(str(tmp_path)))
    image, _ = vectors()
    for number, rows in enumerate((np.arange(100), np.arange(100, ROWS))):
        work.put(f"vectors-{number}", {"row": rows.astype(np.uint32), "image": image[rows]})
    pieces = [ComputedVectors(work.file(f"vectors-{number}").location) for number in range(2)]
    for name, selected in (("all", RowSet.full(ROWS)), ("even", RowSet.empty(ROWS))):
        selected.add(np.arange(0, ROWS, 2))
        (work.folder / name).put_bytes(selected.to_bytes())
    step = ClusterStep(step="cluster", num_clusters=5)
    clusters = cluster(run_here, work, step, pieces, work.folder / "all", ROWS, 1 << 20)
    made = cluster_map(run_here, work / "map", clusters, work.folder / "even")
    files = [ArrayFile(location) for location in clusters.files]
    labels, row, distance = (
        np.concatenate([file.read(name) for file in files]) for name in ("cluster", "row", "distance")
    )
    assert made.sizes.tolist() == sorted(np.bincount(labels).tolist(), reverse=True)
    assert sorted(made.kept.tolist()) == sorted(np.bincount(labels[row % 2 == 0]).tolist())
    nearest = {int(row[labels == n][distance[labels == n].argmin()]) for n in range(5)}
    assert 0 < len(made.examples) <= 5
    assert set(made.examples.values()) <= nearest
    assert made.points.min() == 0
    assert made.points.max() == 1
