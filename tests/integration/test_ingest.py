"""The ingest job: killed and started again it does nothing twice; other tools read what it wrote."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

import raw_pairs
from cluster_fixtures import Cluster
from warren.cluster.ingestion import ingest
from warren.config import IngestConfig
from warren.data.manifest import Manifest
from warren.errors import DataError, QuarantineError
from warren.storage import Location

GOOD = 240


@pytest.fixture(scope="module")
def source(s3_server: Any, storage_root: Location, tmp_path_factory: pytest.TempPathFactory) -> IngestConfig:
    """LLaVA JSON and its pictures in S3: 60 shards."""
    local = tmp_path_factory.mktemp("raw")
    config = raw_pairs.write_bunny_json(local, 8)
    for path in (local / "images").iterdir():
        (storage_root / "raw" / path.name).create_bytes(path.read_bytes())
    records = [
        {**r, "image": f"{'./' * (n == 3)}{n % 7}.jpg"} for n, r in enumerate(raw_pairs.bunny_records(GOOD)[: GOOD - 1])
    ]
    records += raw_pairs.bunny_records(8)[7:]
    (storage_root / "raw.json").create_bytes(json.dumps(records).encode())
    changes = {"path": f"{storage_root}/raw.json", "images": f"{storage_root}/raw"}
    return config.model_copy(update=changes)


@pytest.fixture(scope="module")
def whole(ray_cluster: Cluster, source: IngestConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a dataset that an undisturbed ingest wrote."""
    root = tmp_path_factory.mktemp("whole")
    ingest(source, Location(str(root)))
    return root / "datasets/pairs/v1"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("[!.]*") if path.is_file()}


def start(repository: Path, config: IngestConfig, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    values = yaml.safe_dump(
        json.loads(config.model_dump_json(exclude_none=True)), default_flow_style=True, width=10_000
    )
    command = [sys.executable, "jobs/ingest.py", "--set", f"ingest={values}"]
    return subprocess.Popen(command, cwd=repository, env={**os.environ, **environment}, stderr=subprocess.DEVNULL)


def test_a_killed_ingest_goes_on_and_writes_nothing_twice(
    ray_cluster: Cluster, repository: Path, source: IngestConfig, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "datasets/pairs/v1"
    process = start(repository, source, {**ray_cluster.driver_env, "WARREN_STORAGE": str(tmp_path)})
    while len(list((folder / "receipts").glob("0*.json"))) < 5:
        assert process.poll() is None, "the ingest ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    receipts = {path.name.removesuffix(".json") for path in (folder / "receipts").glob("0*.json")}
    finished = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.glob("*.parquet") if p.stem[6:] in receipts}
    total = len(list(whole.glob("shard-*.parquet")))
    assert 0 < len(finished) < total
    assert not (folder / "manifest.json").exists()
    with pytest.raises(DataError, match="was begun with another configuration and never finished"):
        ingest(source.model_copy(update={"samples_per_shard": 5}), Location(str(tmp_path)))
    ingest(source, Location(str(tmp_path)))
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in finished} == finished
    assert files(folder) == files(whole)


def test_a_finished_dataset_says_what_it_is(whole: Path) -> None:
    manifest = Manifest.from_json(json.loads((whole / "manifest.json").read_text()))
    bad = pq.read_table(whole / "quarantine/00000000.parquet").to_pylist()
    assert manifest.rows == GOOD
    assert manifest.statistics["totals"] == {
        "characters": manifest.statistics["totals"]["characters"],
        "image_bytes": manifest.statistics["totals"]["image_bytes"],
        "images": GOOD - 1,
        "quarantined": len(bad),
        "samples": GOOD,
        "text_only": 1,
    }
    assert len({row["key"] for row in bad}) == len(bad) == 12
    assert all(row["reason"] and row["source"].startswith("raw.json") for row in bad)
    card = (whole / "README.md").read_text()
    assert f"| samples | {GOOD} |" in card
    assert "| … that are no known image format | 1 |" in card.replace("… bytes", "…")
    assert (whole / "card.png").read_bytes().startswith(b"\x89PNG")
    assert not list(whole.glob("receipts/*"))


def test_too_many_bad_samples_publish_nothing_and_can_be_mended(
    ray_cluster: Cluster, source: IngestConfig, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "datasets/pairs/v1"
    with pytest.raises(QuarantineError, match=r"pairs: \d+ of 252 samples cannot be used, more than the allowed 1.00%"):
        ingest(source.model_copy(update={"max_quarantined_fraction": 0.01}), Location(str(tmp_path)))
    assert not (folder / "manifest.json").exists()
    assert list((folder / "quarantine").glob("*.parquet"))
    ingest(source, Location(str(tmp_path)))
    assert files(folder) == files(whole)


def test_hugging_face_datasets_read_it_with_pictures(whole: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    found = datasets.load_dataset(str(whole), split="train", cache_dir=str(tmp_path))
    assert len(found) == GOOD
    first = found[0]
    assert first["images"][0].size == (40, 30)
    assert first["turns"][0] == {"role": "user", "text": "<image>\nwhich colour? 0"}


def test_duckdb_and_pyarrow_read_it(whole: Path) -> None:
    import duckdb
    import pyarrow.dataset

    query = "select count(*), sum(len(images)), count(distinct key) from read_parquet(?)"
    assert duckdb.execute(query, [f"{whole}/shard-*.parquet"]).fetchone() == (GOOD, GOOD - 1, GOOD)
    table = pyarrow.dataset.dataset(sorted(str(path) for path in whole.glob("shard-*.parquet"))).to_table()
    assert table.num_rows == GOOD
    assert table.column("turns")[0][1]["text"].as_py() == "it is red ü"
