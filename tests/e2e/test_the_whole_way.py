"""Raw pairs to REST answer: the demo on a smaller slice, on the session's cluster, through `ray job submit`."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from warren.config import Recipe, load_config
from warren.release import fetch_release, read_alias, release_folder
from warren.storage import Location
from warren.testbed.demo import Demo

SLICE = [
    "ingest.limit_images=60",
    "pretrain.duration={epochs: 2}",
    "finetune.duration={epochs: 1}",
    "evaluate.limit_samples=null",
    "release.gate={min_score: 0.0}",
]


@pytest.mark.slow
@pytest.mark.long  # `make demo` goes the same way in CI
@pytest.mark.timeout(600)
def test_raw_pairs_become_a_rest_answer(
    repository: Path,
    ray_cluster: Any,
    storage_root: Location,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(repository)
    recipe = load_config(Recipe, "demo", [repository / "jobs" / "recipes"], SLICE)
    demo = Demo(recipe, SLICE, tmp_path, num_questions=4)
    metrics = demo.walk(storage_root, ray_cluster.env, ray_cluster.serve_port)

    assert metrics["asked"] == 4
    exact = [row["answer"].strip().rstrip(".").lower() == row["truth"] for row in predictions(storage_root)]
    assert (metrics["accuracy"], metrics["num_questions"]) == (sum(exact) / len(exact), len(exact))
    assert (tmp_path / "demo.png").stat().st_size > 20_000
    version = read_alias(storage_root, "demo", "stable")
    assert version is not None
    release = fetch_release(release_folder(storage_root, "demo", version).uri, tmp_path / "release")
    trained_on = [dataset.reference for dataset in release.lineage.datasets]
    assert trained_on == ["easy-vqa-captions@v1", "easy-vqa-train@v1"]
    assert release.lineage.stage == "finetune"
    assert release.scores["easy-vqa-test@v1/exact_match"] == metrics["accuracy"]
    assert (tmp_path / "release" / "model.safetensors").is_file()


def predictions(root: Location) -> list[dict[str, Any]]:
    [file] = [each for each in (root / "runs/demo-finetune/evaluations").list() if each.name == "predictions.parquet"]
    with file.open() as opened:
        return list(pq.read_table(opened).to_pylist())
