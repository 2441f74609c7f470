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
from warren.cluster.batch.ingestion import ingest
from warren.config import IngestConfig
from warren.data.manifest import Manifest, read_manifest
from warren.errors import DataError, EmptyDatasetError, QuarantineError, root_cause
from warren.storage import Location
from warren.storage.s3 import ensure_bucket

GOOD = 240


@pytest.fixture(scope="module")
def source(s3_server: Any, storage_root: Location, tmp_path_factory: pytest.TempPathFactory) -> IngestConfig:
    """LLaVA JSON and its images in S3: 60 shards."""
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
    while len(list((folder / "receipts").glob("*.json"))) < 5:
        assert process.poll() is None, "the ingest ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    receipts = [json.loads(path.read_text()) for path in (folder / "receipts").glob("*.json")]
    shards = [folder / receipt["shard"]["path"] for receipt in receipts if receipt["shard"]]
    finished = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in shards}
    total = len(list(whole.glob("shard-*.parquet")))
    assert 0 < len(finished) < total
    assert not (folder / "manifest.json").exists()
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
    with pytest.raises(QuarantineError, match=r"pairs: \d+ of 252 samples cannot be used so far, more.* 1.00%"):
        ingest(source.model_copy(update={"max_quarantined_fraction": 0.01}), Location(str(tmp_path)))
    assert not (folder / "manifest.json").exists()
    assert list((folder / "quarantine").glob("*.parquet"))
    ingest(source, Location(str(tmp_path)))
    assert files(folder) == files(whole)


def test_hugging_face_datasets_read_it_with_images(whole: Path, tmp_path: Path) -> None:
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


def test_a_bucket_of_any_name_and_a_source_that_changes(ray_cluster: Cluster) -> None:
    ensure_bucket("my-bucket")
    root = Location.parse("s3://my-bucket/warren-bucket")
    source = root / "bucket/train.json"
    names = ["bucket-0.jpg", "bucket/1.jpg", "no-such-bucket.jpg", "s3://no-such-bucket/1.jpg"]
    records = [{"image": name, "conversations": raw_pairs.messages(0)} for name in names]
    source.put_json(records)
    config = raw_pairs.config("bunny-json", path=source.uri, max_quarantined_fraction=0.5)
    with pytest.raises(EmptyDatasetError, match="none of its 4 samples can be used"):
        ingest(config.model_copy(update={"max_quarantined_fraction": 1.0}), root)
    (root / "bucket" / names[0]).create_bytes(raw_pairs.colour_image(0))  # the JSON stays as it is
    with pytest.raises(QuarantineError, match=r"pairs: 3 of 4 samples cannot be used so far"):
        ingest(config, root)
    (root / "bucket" / names[1]).create_bytes(raw_pairs.colour_image(1))
    made = ingest(config, root)[0]
    assert (made.rows, made.statistics["totals"]["quarantined"]) == (2, 2)
    assert ingest(config, root) == [made]

    folder = root / "datasets/pairs/v1"
    manifest = (folder / "manifest.json").read_bytes()
    corrected = config.model_copy(update={"licence": "cc-by-4.0", "origin": "a shop"})
    assert [(m.licence, m.source) for m in ingest(corrected, root)] == [("cc-by-4.0", "a shop")]
    assert (read_manifest(root, "pairs@v1").licence, made.licence) == ("cc-by-4.0", "unknown")
    assert b"| licence | cc-by-4.0 |" in (folder / "README.md").read_bytes()

    with pytest.raises(DataError, match=r"is kept as it is.*ingest\.max_pixels: default → 5.*ingest\.version=…"):
        ingest(config.model_copy(update={"max_pixels": 5}), root)
    source.put_json([*records, *records[:1]])
    with pytest.raises(
        DataError, match=r"v1 exists with 2 samples and is kept.*train\.json changed \(\d+ → \d+ bytes\)"
    ):
        ingest(config, root)
    assert (folder / "manifest.json").read_bytes() == manifest
    assert ingest(config.model_copy(update={"version": "v2"}), root)[0].rows == 3


def test_a_damaged_tar_is_named_in_one_sentence_and_can_be_removed(ray_cluster: Cluster, tmp_path: Path) -> None:
    config = raw_pairs.write_webdataset(tmp_path / "raw", 8)
    (tmp_path / "raw/00001.tar").write_bytes(b"junk" * 1000)
    with pytest.raises(Exception, match="damaged") as caught:
        ingest(config, Location(str(tmp_path)))
    assert str(root_cause(caught.value)).startswith(f"{tmp_path}/raw/00001.tar is damaged or ends early")
    assert "attempts" not in str(root_cause(caught.value))
    (tmp_path / "raw/00001.tar").unlink()
    manifest = ingest(config, Location(str(tmp_path)))[0]
    listed = {shard.file.path for shard in manifest.shards}
    folder = tmp_path / "datasets/pairs/v1"
    assert {path.name for path in folder.glob("shard-*")} == listed  # what was made of the damaged source is gone
    assert not list(folder.glob("receipts/*"))
