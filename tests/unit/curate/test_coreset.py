"""Bunny's coreset, id for id, where the clusters are given; within its gates, where k-means is free."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from factories import text_sample, write_dataset
from warren.config import CurateConfig
from warren.curate.pipeline import curate
from warren.curate.tasks import run_here
from warren.data.manifest import Manifest
from warren.data.stream import iter_samples
from warren.storage import Location

STEPS: list[Any] = [
    {"step": "near_duplicates", "threshold": 0.86},
    {"step": "rank_band", "by": "clip_score", "band": [0.4, 0.6]},
    {"step": "rank_band", "by": "centroid_cosine", "band": [0.15, 0.35]},
]


@pytest.fixture(scope="module")
def oracle(repository: Path) -> Path:
    return repository / "tests" / "oracle" / "coreset"


def write_pairs(root: Location, folder: Path, data: Any, shuffled: bool) -> None:
    """Write the oracle's samples as a dataset, and their embeddings as Parquet in another order."""
    keys = [str(key) for key in data["key"]]
    samples = [text_sample(n).__class__(key, (), text_sample(n).turns, "tests") for n, key in enumerate(keys)]
    write_dataset(root, "pairs", samples, per_shard=500, per_group=50)
    order = np.random.default_rng(0).permutation(len(keys)) if shuffled else np.arange(len(keys))
    columns = {"image_embedding": data["image_emb"], "text_embedding": data["text_emb"]}
    table = pa.table({"key": [keys[n] for n in order]} | {k: list(v[order]) for k, v in columns.items()})
    if "cluster" in data:
        table = table.append_column("cluster", pa.array(data["cluster"][order]))
    folder.mkdir()
    half = len(keys) // 3
    pq.write_table(table.slice(0, half), folder / "a.parquet", row_group_size=300)
    pq.write_table(table.slice(half), folder / "b.parquet", row_group_size=1000)


def select(root: Location, folder: Path, steps: list[dict[str, Any]], version: str, **changes: Any) -> Manifest:
    values = {
        "name": "chosen",
        "version": version,
        "datasets": ["pairs@v1"],
        "embeddings": {"path": str(folder), **({"cluster_column": "cluster"} if steps[0].get("assigned") else {})},
        "steps": steps,
        **changes,
    }
    return curate(CurateConfig.model_validate_json(json.dumps(values)), root, run_here)


def keys_of(root: Location, manifest: Manifest) -> list[int]:
    folder = root / "datasets" / manifest.name / manifest.version
    return sorted(int(sample.key) for sample in iter_samples(folder, manifest))


@pytest.mark.parametrize("memory_mib", [1024, 1])
def test_given_clusters_give_bunnys_ids(tmp_path: Path, oracle: Path, memory_mib: int) -> None:
    data, expected = (np.load(oracle / f"given_clusters_{name}.npz") for name in ("input", "expected"))
    root = Location(str(tmp_path / "store"))
    write_pairs(root, tmp_path / "embeddings", data, shuffled=True)
    np.save(tmp_path / "centroids.npy", data["centroids"])
    cluster = {"step": "cluster", "assigned": True, "centroids": str(tmp_path / "centroids.npy")}
    steps: list[dict[str, Any]] = [{**cluster, "drop_clusters": data["drop_clusters"].tolist()}, *STEPS]
    for number in (1, 2, 3):
        manifest = select(root, tmp_path / "embeddings", steps[: number + 1], f"v{number}", task_memory_mib=memory_mib)
        assert keys_of(root, manifest) == sorted(expected[f"step{number}_keys"].tolist())


def test_free_k_means_stays_within_the_gates(tmp_path: Path, oracle: Path) -> None:
    data = np.load(oracle / "free_kmeans_input.npz")
    root = Location(str(tmp_path / "store"))
    write_pairs(root, tmp_path / "embeddings", data, shuffled=False)
    steps: list[dict[str, Any]] = [
        {"step": "cluster", "num_clusters": 15, "seed": 3, "samples_per_cluster": 200},
        STEPS[0],
    ]
    kept = keys_of(root, select(root, tmp_path / "embeddings", steps, "v1"))
    assert len(kept) == pytest.approx(1238.2, rel=0.02)
    group = dict(zip(data["key"].tolist(), data["planted_group"].tolist(), strict=True))
    numbers = np.array([group[key] for key in kept])
    planted = np.unique(data["planted_group"][data["planted_group"] >= 0])
    of_each = np.array([(numbers == number).sum() for number in planted])
    assert (of_each == 1).mean() >= 0.94
    assert (numbers == -1).sum() / (data["planted_group"] == -1).sum() >= 0.98
