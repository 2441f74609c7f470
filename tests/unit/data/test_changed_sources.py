"""A source that changes: what is finished of its unchanged parts is kept, and a finished dataset says what changed."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import raw_pairs
from warren.config import IngestConfig
from warren.config.ingest import ColumnsConfig
from warren.data.importers import importers
from warren.data.manifest import Manifest
from warren.data.provenance import Provenance
from warren.data.sample import Sample
from warren.data.shards import Receipt, SampleLimits, ShardMaker
from warren.data.stream import iter_samples
from warren.errors import CorruptDataError
from warren.storage import Location

GOOD = 11


def maker(config: IngestConfig, folder: Path) -> ShardMaker:
    importer = importers(config)[0]
    limits, location = SampleLimits(config.max_pixels, config.max_characters), Location(str(folder))
    options = Provenance.of(config, importer.files).code_and_options
    sizes = config.samples_per_shard, config.samples_per_row_group
    return ShardMaker(importer, location, limits, *sizes, options=options)


def make(config: IngestConfig, folder: Path) -> list[Receipt]:
    """Do every piece as far as it goes."""
    making = maker(config, folder)
    found: list[Receipt] = []
    for number, piece in enumerate(making.importer.pieces(making.samples_per_shard)):
        try:
            found += making.make(number, piece)
        except CorruptDataError:
            continue
    return found


def samples(receipts: list[Receipt], folder: Path) -> list[Sample]:
    shards = tuple(receipt.shard for receipt in receipts if receipt.shard)
    return list(iter_samples(Location(str(folder)), Manifest("pairs", "v1", shards, "", "")))


def remove_a_damaged_tar(raw: Path) -> None:
    (raw / "00001.tar").unlink()


def exchange_tars(raw: Path) -> None:
    (raw / "00001.tar").unlink()
    (raw / "00002.tar").rename(raw / "00009.tar")


def mend_the_last_record(raw: Path) -> None:
    records = json.loads((raw / "pairs.json").read_text())
    (raw / "pairs.json").write_text(json.dumps(records[:-1], indent=1, ensure_ascii=False))


def append_rows(raw: Path) -> None:
    with (raw / "pairs.csv").open("a", newline="") as file:
        file.write("0.jpg,another caption 0,7\r\n")


def append_a_table(raw: Path) -> None:
    (raw / "9.parquet").write_bytes((raw / "0.parquet").read_bytes())


@pytest.mark.parametrize(
    ("write", "damage", "mend"),
    [
        (raw_pairs.write_webdataset, "00001.tar", remove_a_damaged_tar),
        (raw_pairs.write_webdataset, None, exchange_tars),
        (raw_pairs.write_bunny_json, None, mend_the_last_record),
        (raw_pairs.write_csv, None, append_rows),
        (raw_pairs.write_parquet, None, append_a_table),
    ],
)
def test_shards_of_unchanged_pieces_are_kept_and_the_dataset_is_that_of_the_mended_source(
    write: Callable[[Path, int], IngestConfig],
    damage: str | None,
    mend: Callable[[Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw, folder, fresh = tmp_path / "raw", tmp_path / "data", tmp_path / "fresh"
    config = write(raw, GOOD)
    if damage:
        (raw / damage).write_bytes(b"")
    before = make(config, folder)
    times = {path: path.stat().st_mtime_ns for path in folder.glob("shard-*.parquet")}
    mend(raw)
    checked: list[Sample] = []
    check = SampleLimits.check

    def noted(limits: SampleLimits, sample: Sample) -> list[tuple[int, int]]:
        checked.append(sample)
        return check(limits, sample)

    monkeypatch.setattr(SampleLimits, "check", noted)
    after = make(config, folder)
    kept = [receipt for receipt in after if receipt in before]
    assert len(kept) >= 2
    redone = sum(sum(r.statistics.totals[c] for c in ("samples", "quarantined")) for r in after if r not in before)
    assert len(checked) <= redone
    assert all(times[path] == path.stat().st_mtime_ns for path in times)
    expected = make(config, fresh)
    assert samples(after, folder) == samples(expected, fresh)
    assert [r.shard and r.shard.file.sha256 for r in after] == [r.shard and r.shard.file.sha256 for r in expected]
    keys = [sample.key for sample in samples(after, folder)] + [bad.key for receipt in after for bad in receipt.bad]
    assert len(set(keys)) == len(keys)


def test_another_meaning_of_the_same_bytes_is_done_anew(tmp_path: Path) -> None:
    config = raw_pairs.write_csv(tmp_path / "raw", GOOD)
    before = make(config, tmp_path / "data")
    table = tmp_path / "raw/pairs.csv"
    table.write_bytes(table.read_bytes().replace(b"text,more", b"more,text"))
    after = make(config, tmp_path / "data")
    assert samples(after, tmp_path / "data")[0].turns[1].text == "0"
    assert not {receipt.piece for receipt in after} & {receipt.piece for receipt in before}
    other = make(config.model_copy(update={"max_characters": 3}), tmp_path / "data")
    assert not {receipt.piece for receipt in other} & {receipt.piece for receipt in after}


def provenance(config: IngestConfig) -> Provenance:
    return Provenance.of(config, importers(config)[0].files)


def test_a_finished_dataset_knows_what_it_was_made_of(tmp_path: Path) -> None:
    config = raw_pairs.write_webdataset(tmp_path / "raw", GOOD)
    before = provenance(config)
    before.write(Location(str(tmp_path)))
    assert Provenance.read(Location(str(tmp_path))) == before
    tar = tmp_path / "raw/00000.tar"
    os.utime(tar, ns=(0, 0))
    assert provenance(config).changes_since(before) == []  # copied again, installed again: the bytes count
    for same in ({"licence": "cc0"}, {"origin": "here"}, {"max_quarantined_fraction": 0.5}):
        assert provenance(config.model_copy(update=same)).changes_since(before) == []
    other = {"max_pixels": 5, "alpha": "white", "columns": ColumnsConfig(caption="x")}
    for name, value in other.items():
        changes = provenance(config.model_copy(update={name: value})).changes_since(before)
        assert len(changes) == 1
        assert changes[0].startswith(f"ingest.{name}: default → ")
    size = tar.stat().st_size
    tar.write_bytes(tar.read_bytes() + b"\0" * 512)
    (tmp_path / "raw/00001.tar").unlink()
    (tmp_path / "raw/00009.tar").write_bytes(b"")
    assert provenance(config).changes_since(before) == [
        f"00000.tar changed ({size} → {size + 512} bytes)",
        "00001.tar is gone",
        "00009.tar is new",
    ]


def test_files_that_only_differ_in_their_folder_give_keys_of_their_own(tmp_path: Path) -> None:
    for name in ("a", "b"):
        config = raw_pairs.write_bunny_json(tmp_path / "raw" / name, 4)
    config = config.model_copy(update={"path": str(tmp_path / "raw")})
    found = make(config, tmp_path / "data")
    keys = [sample.key for sample in samples(found, tmp_path / "data")]
    assert len(set(keys)) == len(keys) == 8
