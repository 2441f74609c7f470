"""Records as files of every format, and what an ingest without a cluster makes of them."""

import io
import itertools
import json
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import raw_pairs
from warren.config import IngestConfig
from warren.config.ingest import ColumnsConfig
from warren.data.importers import importers
from warren.data.manifest import Manifest
from warren.data.sample import Sample
from warren.data.shards import SampleLimits, ShardMaker
from warren.data.stream import iter_samples
from warren.storage import Location

IMAGE = raw_pairs.colour_image(0)


def ingest(config: IngestConfig) -> tuple[list[Sample], list[tuple[str, str, str]]]:
    """Return the samples and the (key, source, reason) of what is quarantined, through shards and receipts."""
    with TemporaryDirectory() as name:
        folder = Location(name)
        maker = ShardMaker(importers(config)[0], folder, SampleLimits(config.max_pixels, config.max_characters), 50, 50)
        found = [r for number, piece in enumerate(maker.importer.pieces(50)) for r in maker.make(number, piece)]
        shards = tuple(receipt.shard for receipt in found if receipt.shard)
        samples = list(iter_samples(folder, Manifest("pairs", "v1", shards, "", ""))) if shards else []
    bad = [(entry.key, entry.source, entry.reason) for receipt in found for entry in receipt.bad]
    for text in itertools.chain.from_iterable(bad):
        assert text.encode(), "a quarantined sample is named"
        assert len(text) <= 300
    assert sum(receipt.statistics.totals["quarantined"] for receipt in found) == len(bad)
    return samples, bad


def fields_of(records: list[Any], columns: ColumnsConfig) -> set[str]:
    return {name for record in records for name in record} | set(columns.model_dump(exclude_none=True).values())


def write_json(folder: Path, records: list[Any], columns: ColumnsConfig, **options: Any) -> IngestConfig:
    (folder / "x.json").write_text(json.dumps(records))
    return raw_pairs.config("bunny-json", path=f"{folder}/x.json", columns=columns, **options)


def write_jsonl(folder: Path, records: list[Any], columns: ColumnsConfig, **options: Any) -> IngestConfig:
    (folder / "x.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return raw_pairs.config("table", path=f"{folder}/x.jsonl", columns=columns, **options)


def write_csv(folder: Path, records: list[Any], columns: ColumnsConfig, **options: Any) -> IngestConfig:
    names = sorted(
        {name for record in records for name in record} | set(columns.model_dump(exclude_none=True).values())
    )
    lines = [names] + [[record.get(name) for name in names] for record in records]
    with (folder / "x.csv").open("w", newline="", encoding="utf-8", errors="surrogatepass") as file:
        for line in lines:
            cells = [cell if isinstance(cell, str) else "" if cell is None else json.dumps(cell) for cell in line]
            file.write(",".join('"' + cell.replace('"', '""') + '"' for cell in cells) + "\r\n")
    return raw_pairs.config("table", path=f"{folder}/x.csv", columns=columns, **options)


def write_tar(folder: Path, records: list[Any], columns: ColumnsConfig, **options: Any) -> IngestConfig:
    members = [
        member
        for number, record in enumerate(records)
        for member in ((f"{number}.jpg", IMAGE), (f"{number}.json", json.dumps(record).encode()))
    ]
    return tar_of(folder, members, columns=columns, **options)


def write_parquet(folder: Path, records: list[Any], columns: ColumnsConfig, **options: Any) -> IngestConfig:
    names = sorted(fields_of(records, columns))
    table = {name: pa.array([record.get(name) for record in records]) for name in names}
    pq.write_table(pa.table(table), folder / "x.parquet")
    return raw_pairs.config("parquet", path=f"{folder}/x.parquet", columns=columns, **options)


def tar_of(folder: Path, members: list[tuple[str, bytes]], name: str = "x.tar", **options: Any) -> IngestConfig:
    with tarfile.open(folder / name, "w", format=tarfile.PAX_FORMAT, errors="surrogateescape") as tar:
        for path, data in members:
            info = tarfile.TarInfo(path)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return raw_pairs.config("webdataset", path=str(folder), **options)
