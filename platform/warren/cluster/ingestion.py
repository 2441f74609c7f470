"""Raw pairs to datasets, as a Ray Data job: tasks turn pieces into shards, the driver writes the manifest last."""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa
import ray.data
from tqdm import tqdm

from warren.config import IngestConfig
from warren.data.card import write_card
from warren.data.importers import Importer, Piece, importers
from warren.data.manifest import MANIFEST, Manifest, dataset_folder, write_manifest
from warren.data.quarantine import Quarantine
from warren.data.shards import Limits, Receipt, ShardMaker, receipts_folder
from warren.data.statistics import Statistics
from warren.errors import ConflictError, DataError, EmptyDatasetError, NotFoundError, QuarantineError
from warren.storage import Location

_MAX_BLOCKS = 4096
_DELETING_THREADS = 16


def ingest(config: IngestConfig, root: Location) -> list[Manifest]:
    """Write every dataset of the configured source. What an earlier attempt finished is not done again.

    Raises:
        QuarantineError: More samples are unusable than `max_quarantined_fraction` allows; no manifest is written.
        EmptyDatasetError: A source has no usable sample.
        DataError: The version exists, or was begun, with another configuration or other files.
    """
    return [_ingest_one(importer, config, root) for importer in importers(config)]


def _ingest_one(importer: Importer, config: IngestConfig, root: Location) -> Manifest:
    folder = dataset_folder(root, f"{importer.name}@{config.version}")
    present = _present(folder, config)
    if present is not None:
        return present
    pieces = list(importer.pieces(config.samples_per_shard))
    if not pieces:
        raise EmptyDatasetError(f"{importer.name}: the source has no samples")
    _claim(folder, config, pieces)
    limits = Limits(config.max_pixels, config.max_characters)
    maker = ShardMaker(importer, folder, limits, config.samples_per_shard, config.samples_per_row_group)
    receipts = _collect(maker, pieces, config.max_quarantined_fraction)
    statistics = Statistics()
    for receipt in receipts:
        statistics.merge(receipt.statistics)
    shards = tuple(receipt.shard for receipt in receipts if receipt.shard)
    if not shards:
        raise EmptyDatasetError(f"{importer.name}: none of its {statistics.totals['quarantined']} samples can be used")
    counts = {**statistics.to_json(), "ingest": config.content_fingerprint}
    manifest = Manifest(importer.name, config.version, shards, importer.origin, importer.licence, counts)
    write_card(folder, manifest, statistics)
    write_manifest(root, manifest)
    _delete_all(receipts_folder(folder))
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
    if manifest.statistics.get("ingest") != config.content_fingerprint:
        raise DataError(
            f"{folder} exists and was made with another ingest configuration: give this one another "
            "version (--set ingest.version=v2), or undo the change"
        )
    return manifest


def _claim(folder: Location, config: IngestConfig, pieces: list[Piece]) -> None:
    """Note what the version is being made of, so that a later attempt cannot mix something else into it.

    Raises:
        DataError: It was begun with another configuration or other files.
    """
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(repr(piece).encode())
    plan = {"ingest": config.content_fingerprint, "pieces": len(pieces), "pieces_sha256": digest.hexdigest()}
    target = receipts_folder(folder) / "plan.json"
    try:
        target.create_json(plan)
    except ConflictError:
        begun = target.read_json()
        if begun != plan:
            other = "configuration" if begun.get("ingest") != plan["ingest"] else "source files"
            raise DataError(
                f"{folder} was begun with another {other} and never finished: give this ingest another version "
                f"(--set ingest.version=v2), undo the change, or delete {folder}"
            ) from None


def _collect(maker: ShardMaker, pieces: list[Piece], max_quarantined_fraction: float) -> list[Receipt]:
    """Return the receipts of all shards, in order.

    Raises:
        QuarantineError: More samples cannot be used than is allowed. Where the source does not tell its size, the
            share is judged by the pieces that are through.
    """
    receipts: dict[tuple[int, int], Receipt] = {}
    known = sum(piece.rows or 0 for piece in pieces) if all(piece.rows is not None for piece in pieces) else None
    seen = bad = finished = 0
    with tqdm(total=known, desc=maker.importer.name, unit="sample") as progress:
        for place, receipt in _make_shards(maker, pieces):
            receipts[place] = receipt
            totals = receipt.statistics.totals
            seen += totals["samples"] + totals["quarantined"]
            bad += totals["quarantined"]
            finished += receipt.is_last
            progress.update(totals["samples"] + totals["quarantined"])
            progress.set_postfix(shards=len(receipts), quarantined=bad, refresh=False)
            expected = max(seen, known if known is not None else seen * len(pieces) // max(1, finished))
            if bad > max_quarantined_fraction * expected:
                break
    in_order = dict(sorted(receipts.items()))
    _quarantine(maker, in_order, max_quarantined_fraction, expected)
    return list(in_order.values())


def _quarantine(
    maker: ShardMaker, receipts: dict[tuple[int, int], Receipt], max_fraction: float, num_samples: int
) -> None:
    quarantine = Quarantine(maker.folder / "quarantine", max_fraction)
    try:
        quarantine.add(0, [bad for receipt in receipts.values() for bad in receipt.bad], num_samples)
    except QuarantineError as error:
        for place, receipt in receipts.items():
            if receipt.bad:
                maker.forget(*place)  # its source may be mended before the next attempt
        raise QuarantineError(f"{maker.importer.name}: {error}") from None
    finally:
        quarantine.write(0)


def _make_shards(maker: ShardMaker, pieces: list[Piece]) -> Iterator[tuple[tuple[int, int], Receipt]]:
    """Run the pieces on the cluster; yield each shard's (piece, part) and receipt once it is written."""
    tables = [pa.table({"number": [i], **{k: [v] for k, v in vars(piece).items()}}) for i, piece in enumerate(pieces)]
    per_block = -(-len(tables) // _MAX_BLOCKS)
    blocks = [pa.concat_tables(tables[i : i + per_block]) for i in range(0, len(tables), per_block)]
    written = ray.data.from_arrow(blocks).map_batches(_MakeShards(maker), batch_size=1, batch_format="pyarrow")
    written.context.target_max_block_size = 1  # every receipt comes as soon as its shard is written
    for row in written.iter_rows():
        yield (row["number"], row["part"]), Receipt.from_json(json.loads(row["receipt"]))


@dataclass(frozen=True)
class _MakeShards:
    """What one Ray Data task does."""

    maker: ShardMaker

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for row in batch.to_pylist():
            number = row.pop("number")
            for part, receipt in enumerate(self.maker.make(number, Piece(**row))):
                yield pa.table({"number": [number], "part": [part], "receipt": [json.dumps(receipt.to_json())]})


def _delete_all(folder: Location) -> None:
    with ThreadPoolExecutor(_DELETING_THREADS) as pool:
        list(pool.map(lambda found: found.store.delete(found.key), folder.list()))
