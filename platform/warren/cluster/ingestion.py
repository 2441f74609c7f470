"""Raw pairs to datasets, as a Ray Data job: each task checks and writes one shard, the driver writes the manifest."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
import ray.data
from tqdm import tqdm

from warren.config import IngestConfig, fingerprint
from warren.data.batch import Quarantined
from warren.data.images import decode_image
from warren.data.importers import easy_vqa
from warren.data.manifest import MANIFEST, Manifest, Shard, dataset_folder, write_manifest, write_shard
from warren.data.quarantine import Quarantine
from warren.data.sample import Sample
from warren.errors import (
    BadSampleError,
    ConflictError,
    DataError,
    EmptyDatasetError,
    NotFoundError,
    QuarantineError,
)
from warren.storage import FileEntry, Location


class Source(Protocol):
    """A dataset to be: samples by number, readable on any node."""

    @property
    def name(self) -> str:
        """Name of the dataset."""

    def __len__(self) -> int:
        """Return how many samples there are, good or bad."""

    def read(self, start: int, stop: int) -> Iterator[Sample]:
        """Yield samples `start` … `stop - 1`."""


def ingest(config: IngestConfig, root: Location) -> list[Manifest]:
    """Write every dataset of the configured source.

    Raises:
        QuarantineError: More samples are unusable than `max_quarantined_fraction` allows; no manifest is written.
        EmptyDatasetError: A source has no usable sample.
    """
    sources = easy_vqa.easy_vqa(config.path, config.limit_images, config.questions_per_conversation)
    return [_ingest_one(source, config, root) for source in sources]


def _ingest_one(source: Source, config: IngestConfig, root: Location) -> Manifest:
    folder = dataset_folder(root, f"{source.name}@{config.version}")
    present = _present(folder, config)
    if present is not None:
        return present
    starts = range(0, len(source), config.samples_per_shard)
    if not starts:
        raise EmptyDatasetError(f"{source.name}: the source has no samples")
    plan = ray.data.from_arrow([pa.table({"start": [start]}) for start in starts])
    written = plan.map_batches(_ShardWriter(source, config, folder), batch_size=None, batch_format="pyarrow")
    rows: list[dict[str, Any]] = []
    for row in tqdm(written.iter_rows(), total=len(starts), desc=source.name, unit="shard"):
        rows.append(row)
    rows.sort(key=lambda row: row["start"])
    _check_quarantine(source, config, folder, rows)
    shards = tuple(
        Shard(FileEntry(row["path"], row["bytes"], row["sha256"]), tuple(row["row_groups"]))
        for row in rows
        if row["row_groups"]
    )
    statistics = {
        "images": sum(row["images"] for row in rows),
        "quarantined": sum(len(row["bad_keys"]) for row in rows),
        "ingest": fingerprint(config),
        "bytes": sum(shard.file.bytes for shard in shards),
    }
    manifest = Manifest(source.name, config.version, shards, config.source, easy_vqa.LICENCE, statistics)
    if manifest.rows == 0:
        raise EmptyDatasetError(f"{source.name}: none of its {len(source)} samples can be used")
    write_manifest(root, manifest)
    return manifest


def _present(folder: Location, config: IngestConfig) -> Manifest | None:
    """Return the dataset if an earlier ingest completed it: it never changes, so there is nothing to do again.

    Raises:
        DataError: It was made with another configuration.
    """
    try:
        manifest = Manifest.from_json((folder / MANIFEST).read_json())
    except NotFoundError as error:
        if "bucket" in str(error):
            raise
        return None
    if manifest.statistics.get("ingest") != fingerprint(config):
        raise DataError(
            f"{folder} exists and was made with another ingest configuration: give this one another "
            "version (--set ingest.version=v2), or undo the change"
        )
    return manifest


@dataclass(frozen=True)
class _ShardWriter:
    """One Ray Data task: a range of samples becomes one shard."""

    source: Source
    config: IngestConfig
    folder: Location

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pa.Table.from_pylist([self._write(int(row["start"])) for row in batch.to_pylist()])

    def _write(self, start: int) -> dict[str, Any]:
        good: list[Sample] = []
        bad: list[tuple[str, str, str]] = []
        for sample in self.source.read(start, start + self.config.samples_per_shard):
            try:
                for image in sample.check().images:
                    decode_image(image)
                good.append(sample)
            except BadSampleError as error:
                bad.append((sample.key, sample.source, str(error)))
        path = f"shard-{start // self.config.samples_per_shard:05d}.parquet"
        try:
            shard = write_shard(self.folder, path, good, self.config.samples_per_row_group)
        except ConflictError:  # another attempt of the same task wrote the same bytes
            shard = write_shard(self.folder, path, good, self.config.samples_per_row_group)
        return {
            "start": start,
            **shard.file.to_json(),
            "row_groups": list(shard.row_groups),
            "images": sum(len(sample.images) for sample in good),
            "bad_keys": [key for key, _, _ in bad],
            "bad_sources": [source for _, source, _ in bad],
            "bad_reasons": [reason for _, _, reason in bad],
        }


def _check_quarantine(source: Source, config: IngestConfig, folder: Location, rows: list[dict[str, Any]]) -> None:
    quarantine = Quarantine(folder / "quarantine", config.max_quarantined_fraction)
    bad = [
        Quarantined(*entry)
        for row in rows
        for entry in zip(row["bad_keys"], row["bad_sources"], row["bad_reasons"], strict=True)
    ]
    try:
        quarantine.add(0, bad, len(source))
    except QuarantineError as error:
        quarantine.write(0)
        raise QuarantineError(f"{source.name}: {error}") from None
    quarantine.write(0)
