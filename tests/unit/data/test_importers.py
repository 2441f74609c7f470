"""Every importer: all good pairs, every bad one with its reason, the same however it is cut or interrupted."""

import json
import re
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import raw_pairs
from factories import COLOURS
from warren.config import IngestConfig
from warren.config.ingest import ColumnsConfig
from warren.data.importers import importers
from warren.data.importers.row_parsers import array_rows, csv_rows, delimited_rows, group, line_rows
from warren.data.manifest import Manifest, Shard
from warren.data.sample import Sample
from warren.data.shards import Receipt, SampleLimits, ShardMaker
from warren.data.stream import iter_samples
from warren.errors import BadSampleError, ConfigError, CorruptDataError, DataError
from warren.storage import Location

GOOD = 11
WRITERS: dict[str, Callable[[Path, int], IngestConfig]] = {
    "bunny-json": raw_pairs.write_bunny_json,
    "webdataset": raw_pairs.write_webdataset,
    "parquet": raw_pairs.write_parquet,
    "csv": raw_pairs.write_csv,
    "jsonl": raw_pairs.write_jsonl,
}
REASONS = {
    "bunny-json": ["no such file", "0 image marks in the text, but 1 images", "1 image marks in the text, but 0 images",
                   "turns must alternate",
                   "2 image marks in the text, but 1 images", "characters; at most 2000", "neither a caption nor",
                   "leads out of"],
    "webdataset": ["img2dataset could not fetch it: HTTP 404"],
    "parquet": ["it has no image", "neither a caption nor"],
    "csv": ["no such file", "it has no image", "neither a caption nor"],
    "jsonl": ["no such file", "no JSON object", "no JSON object"],
}  # fmt: skip


def maker(config: IngestConfig, folder: Path) -> ShardMaker:
    limits = SampleLimits(config.max_pixels, config.max_characters)
    importer = importers(config)[0]
    return ShardMaker(importer, Location(str(folder)), limits, config.samples_per_shard, config.samples_per_row_group)


def receipts(making: ShardMaker) -> Generator[Receipt]:
    for number, piece in enumerate(making.importer.pieces(making.samples_per_shard)):
        yield from making.make(number, piece)


def ingest(config: IngestConfig, folder: Path) -> tuple[list[Sample], list[str], tuple[Shard, ...]]:
    found = list(receipts(maker(config, folder)))
    shards = tuple(receipt.shard for receipt in found if receipt.shard)
    manifest = Manifest("pairs", "v1", shards, "", "")
    samples = list(iter_samples(Location(str(folder)), manifest))
    return samples, [f"{bad.source}: {bad.reason}" for receipt in found for bad in receipt.bad], shards


@pytest.mark.parametrize("kind", WRITERS)
def test_good_pairs_come_in_and_bad_ones_are_named(kind: str, tmp_path: Path) -> None:
    config = WRITERS[kind](tmp_path / "raw", GOOD)
    samples, bad, shards = ingest(config, tmp_path / "data")
    assert len(samples) == GOOD
    assert len({sample.key for sample in samples}) == GOOD
    for sample in samples:
        number = int(re.findall(r"\d+", sample.turns[0].text + sample.turns[1].text)[-1])
        assert sample.images in ((), (raw_pairs.colour_image(number),))
        assert sample.turns[1].text.strip('ü" ') in (raw_pairs.caption(number), f"it is {colour(number)}")
    for reason in [reason for _, reason in raw_pairs.BAD_IMAGES.values()] + REASONS[kind]:
        assert any(re.search(reason, entry) for entry in bad), (reason, bad)
    assert len(shards) > 2


def colour(number: int) -> str:
    return list(COLOURS)[number % len(COLOURS)]


@pytest.mark.parametrize("kind", WRITERS)
def test_an_interrupted_ingest_writes_the_same_bytes_and_nothing_twice(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = WRITERS[kind](tmp_path / "raw", GOOD)
    expected = ingest(config, tmp_path / "whole")[2]
    folder = tmp_path / "broken"
    begun = receipts(maker(config, folder))
    for _ in range(2):
        next(begun)
    begun.close()
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    assert 0 < len(times) < len(expected)
    loaded: list[int] = []
    check = SampleLimits.check

    def noted(limits: SampleLimits, sample: Sample) -> list[tuple[int, int]]:
        loaded.append(1)
        return check(limits, sample)

    monkeypatch.setattr(SampleLimits, "check", noted)
    assert ingest(config, folder)[2] == expected
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert len(loaded) < len(times) * 4 + GOOD  # what has a receipt is not decoded again
    for shard in expected:
        assert (folder / shard.file.path).read_bytes() == (tmp_path / "whole" / shard.file.path).read_bytes()


def test_a_damaged_tar_is_named(tmp_path: Path) -> None:
    config = raw_pairs.write_webdataset(tmp_path / "raw", GOOD)
    tar = tmp_path / "raw" / "00001.tar"
    tar.write_bytes(tar.read_bytes()[:2000])
    with pytest.raises(CorruptDataError, match=r"00001\.tar is damaged or ends early"):
        ingest(config, tmp_path / "data")


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    config = raw_pairs.write_parquet(tmp_path / "raw", GOOD)
    (tmp_path / "raw" / "1.parquet").write_bytes(b"PAR1 junk PAR1")
    with pytest.raises(CorruptDataError, match=r"1\.parquet"):
        ingest(config, tmp_path / "data")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "/nowhere/x*.csv"}, "no files that end in"),
        (
            {"columns": ColumnsConfig(image="image", caption="text")},
            "'image', but .*pairs.csv has: url, text, more",
        ),
    ],
)
def test_what_is_not_there_is_said(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    config = raw_pairs.write_csv(tmp_path, 2)
    with pytest.raises(ConfigError, match=message):
        importers(config.model_copy(update=changes))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "array"),
        ("", "a JSON array of records is expected"),
        ('[{"ü": 1}, {"a" 1}]', "byte 12 is no JSON"),
        ("[{}", "no JSON"),
        ('[{"a": 1}][{"a": 2}]', "byte 10: there is more behind the array"),
        ('[{"ü": 1}]\n\n{}', "byte 13: there is more behind the array"),
        ("[]]", "byte 2: there is more behind the array"),
        ('[{"ü": 1},,{"a": 1}]', "byte 11 is no JSON"),
        ('[{"a": 1} {"a": 2}]', "byte 10: what follows the record is no JSON"),
        ('[{"a": 1},]', "byte 10 is no JSON"),
        ("[,{}]", "byte 1 is no JSON"),
        (b'[{"a": "caf\xe9"}]', "not UTF-8 at byte 11"),
        (b'[{"a": "' + b"x" * 3_000_000 + b'\xe9"}]', "not UTF-8 at byte 3000008"),
        (b'[{"a": "caf\xc3', "not UTF-8 at byte 11"),
        ('[{"a": 1}]'.encode("utf-16"), "byte 0 begins UTF-16"),
        ('[{"a": 1}]'.encode("utf-16-le"), "byte 1 is no JSON"),
        (b'\xef\xbb\xbf[{"a": 1}] x', "byte 14: there is more"),
    ],
)
def test_json_that_is_none_is_refused_with_file_and_byte(tmp_path: Path, text: str | bytes, message: str) -> None:
    (tmp_path / "x.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with (tmp_path / "x.json").open("rb") as file, pytest.raises(DataError, match=f"x.json: .*{message}"):
        list(array_rows(file, "x.json"))


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(st.lists(st.dictionaries(texts, texts, max_size=3), max_size=20), st.integers(1, 5), st.integers(0, 3))
def test_ranges_of_an_array_are_its_records(records: list[dict[str, str]], size: int, indent: int) -> None:
    import io

    data = json.dumps(records, indent=indent or None, ensure_ascii=bool(indent % 2)).encode()
    found = list(group(array_rows(io.BytesIO(data), "x"), size))
    assert [json.loads(b"[" + data[a:b] + b"]") for a, b, _ in found] == [
        records[i : i + size] for i in range(0, len(records), size)
    ]
    assert [count for _, _, count in found] == [len(records[i : i + size]) for i in range(0, len(records), size)]


@given(st.lists(st.sampled_from([b"a", b'"', b",", b"\t", b"\n", b"\r", b" ", b"\xff", b"\0"])), st.integers(1, 4))
def test_a_table_is_cut_where_it_is_parsed(characters: list[bytes], size: int) -> None:
    import io

    data = b"".join(characters)
    for rows in (csv_rows, delimited_rows, line_rows):
        try:
            whole = list(rows(io.BytesIO(data), "x"))
        except DataError:
            with pytest.raises(DataError, match=r"x: the quote opened in the record at byte \d+ is never closed"):
                list(rows(io.BytesIO(data), "x"))
            continue
        parts = [io.BytesIO(data[start:stop]) for start, stop, _ in group(whole, size)]
        again = [list(rows(part, "x", is_start=False)) for part in parts]
        assert [(row.value, row.fault) for part in again for row in part] == [(row.value, row.fault) for row in whole]
        assert [len(part) for part in again] == [count for _, _, count in group(whole, size)]


@given(st.lists(st.tuples(texts, texts), max_size=20))
def test_what_a_csv_writer_wrote_comes_back(rows: list[tuple[str, str]]) -> None:
    import csv
    import io

    text = io.StringIO(newline="")
    csv.writer(text, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *rows])
    found = list(csv_rows(io.BytesIO(text.getvalue().encode("utf-8-sig")), "x"))
    assert [tuple(cell.encode("latin-1").decode() for cell in row.value) for row in found] == [("a", "b"), *rows]


def test_an_image_from_the_web(tmp_path: Path) -> None:
    import http.server
    import threading

    from warren.data.importers.image_sources import ImageSources

    raw_pairs.write_images(tmp_path, 1)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(tmp_path))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert ImageSources("/").fetch(f"{url}/0.jpg") == raw_pairs.colour_image(0)
        with pytest.raises(BadSampleError, match="HTTP 404"):
            ImageSources("/").fetch(f"{url}/nothing.jpg")
        server.shutdown()
