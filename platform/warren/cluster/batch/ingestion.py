"""Raw pairs to datasets, as a Ray Data job: tasks turn pieces into shards, the driver writes the manifest last."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pyarrow as pa
import ray.data
from tqdm import tqdm

from warren.config import IngestConfig
from warren.data.data_card import write_card
from warren.data.image_rules import ImageRules
from warren.data.importers import Importer, Piece, importers
from warren.data.manifest import MANIFEST, Manifest, dataset_folder, described, write_about, write_manifest
from warren.data.provenance import Provenance
from warren.data.quarantine import Quarantine
from warren.data.shards import Receipt, SampleLimits, ShardMaker, receipts_folder
from warren.data.statistics import Statistics
from warren.errors import DataError, EmptyDatasetError, NotFoundError, QuarantineError
from warren.storage import Location

_MAX_BLOCKS = 4096
_IO_THREADS = 16
_TO_MEND = "to-mend.json"  # beside the receipts: an attempt ended because of its unusable samples


def ingest(config: IngestConfig, root: Location) -> list[Manifest]:
    """Write every dataset of the configured source. What an earlier attempt finished is not done again.

    Raises:
        QuarantineError: More samples are unusable than `max_quarantined_fraction` allows; no manifest is written.
        EmptyDatasetError: A source has no usable sample.
        DataError: The version exists and was made of other files, with other options or by another ingest format.
    """
    return [_ingest_one(importer, config, root) for importer in importers(config)]


def _ingest_one(importer: Importer, config: IngestConfig, root: Location) -> Manifest:
    folder = dataset_folder(root, f"{importer.name}@{config.version}")
    provenance = Provenance.of(config, importer.files)
    present = _present(folder, importer, provenance)
    if present is not None:
        return present
    pieces = list(importer.pieces(config.samples_per_shard))
    if not pieces:
        raise EmptyDatasetError(f"{importer.name}: the source has no samples")
    _forget_unusable(folder)
    receipts = _collect(shard_maker(importer, folder, config, provenance), pieces, config.max_quarantined_fraction)
    changes = Provenance.of(config, importer.files).changes_since(provenance)
    if changes:
        raise DataError(
            f"{importer.name}: the source changed while it was read ({'; '.join(changes)}): run this again, what is "
            "finished of the unchanged parts is kept"
        )
    meanwhile = _present(folder, importer, provenance)  # another attempt may have been faster
    return meanwhile or _publish(root, folder, importer, config.version, receipts, provenance)


def shard_maker(importer: Importer, folder: Location, config: IngestConfig, provenance: Provenance) -> ShardMaker:
    """Return the shard maker of an importer, with the options of the configuration."""
    return ShardMaker(
        importer,
        folder,
        SampleLimits(config.max_pixels, config.max_characters),
        config.samples_per_shard,
        config.samples_per_row_group,
        ImageRules(config.exif_orientation, config.alpha),
        provenance.code_and_options,
    )


def _publish(
    root: Location,
    folder: Location,
    importer: Importer,
    version: str,
    receipts: list[Receipt],
    provenance: Provenance,
) -> Manifest:
    statistics = Statistics()
    for receipt in receipts:
        statistics.merge(receipt.statistics)
    shards = tuple(receipt.shard for receipt in receipts if receipt.shard)
    if not shards:
        (receipts_folder(folder) / _TO_MEND).put_json({})
        raise EmptyDatasetError(f"{importer.name}: none of its {statistics.totals['quarantined']} samples can be used")
    manifest = Manifest(importer.name, version, shards, importer.origin, importer.licence, statistics.to_json())
    write_card(folder, manifest, statistics)
    write_about(folder, manifest)
    provenance.write(folder)
    write_manifest(root, manifest)
    _tidy(folder, manifest)
    return manifest


def _present(folder: Location, importer: Importer, provenance: Provenance) -> Manifest | None:
    """Return the dataset if an earlier ingest completed it: its samples never change, its licence and origin may.

    Raises:
        DataError: It was made of something else.
    """
    try:
        manifest = Manifest.from_json((folder / MANIFEST).read_json())
    except NotFoundError:
        return None
    if receipts_folder(folder).list():
        _tidy(folder, manifest)  # of an attempt that was killed behind its manifest, or that came second
    _check_same(folder, manifest, provenance)
    known = described(folder, manifest)
    if (known.licence, known.source) != (importer.licence, importer.origin):
        known = replace(manifest, licence=importer.licence, source=importer.origin)
        write_card(folder, known, Statistics.from_json(manifest.statistics))
        write_about(folder, known)
    return known


def _check_same(folder: Location, manifest: Manifest, provenance: Provenance) -> None:
    try:
        changes = provenance.changes_since(Provenance.read(folder))
    except NotFoundError:
        changes = ["it was made before Warren wrote down the source, so a change of it cannot be seen"]
    if changes:
        raise DataError(
            f"{folder} exists with {manifest.rows} samples and is kept as it is, but it is not what this ingest would "
            f"make ({'; '.join(changes)}): to make that, give it another version (--set ingest.version=…); to train on "
            "what is there, leave the ingest out"
        )


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
    bad = [bad for receipt in receipts.values() for bad in receipt.bad]
    if not bad:
        _delete(quarantine.folder.list())  # of an attempt before the source was mended
    try:
        quarantine.add(0, bad, num_samples)
    except QuarantineError as error:
        (receipts_folder(maker.folder) / _TO_MEND).put_json({})
        raise QuarantineError(
            f"{maker.importer.name}: {error}. jobs/ingest.py --dry-run reads samples and writes no dataset"
        ) from None
    finally:
        quarantine.write(0)


def _forget_unusable(folder: Location) -> None:
    """Delete shards with unusable samples if an attempt ended because of them: their images may have been repaired.

    That attempt could not delete them itself, because its tasks may have written receipts after it ended.
    """
    receipts = receipts_folder(folder).list()
    marks = [location for location in receipts if location.name == _TO_MEND]
    if marks:
        with ThreadPoolExecutor(_IO_THREADS) as pool:
            values = list(pool.map(lambda location: location.read_json(), receipts))
        _delete([location for location, value in zip(receipts, values, strict=True) if value.get("bad")])
        _delete(marks)


def _make_shards(maker: ShardMaker, pieces: list[Piece]) -> Iterator[tuple[tuple[int, int], Receipt]]:
    """Run the pieces on the cluster; yield each shard's (piece, part) and receipt once it is written."""
    tables = [pa.table({"number": [i], **{k: [v] for k, v in vars(piece).items()}}) for i, piece in enumerate(pieces)]
    per_block = -(-len(tables) // _MAX_BLOCKS)
    blocks = [pa.concat_tables(tables[i : i + per_block]) for i in range(0, len(tables), per_block)]
    written = ray.data.from_blocks(blocks).map_batches(_MakeShards(maker), batch_size=1, batch_format="pyarrow")
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


def _tidy(folder: Location, manifest: Manifest) -> None:
    """Delete receipts, and shards of attempts with other options or of files that changed since."""
    listed = {(folder / shard.file.path).uri for shard in manifest.shards}
    shards = [
        location for location in folder.list() if location.name.startswith("shard-") and location.uri not in listed
    ]
    _delete([*shards, *receipts_folder(folder).list()])


def _delete(objects: list[Location]) -> None:
    with ThreadPoolExecutor(_IO_THREADS) as pool:
        list(pool.map(lambda location: location.store.delete(location.key), objects))
