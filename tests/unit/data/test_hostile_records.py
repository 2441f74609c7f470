"""Hostile values in every field of every importer: what went in came out or is quarantined."""

import gzip
import io
import itertools
import json
import re
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import raw_pairs
from warren.config import IngestConfig
from warren.config.ingest import ColumnsConfig
from warren.data.importers import Raw, importers
from warren.data.sample import Sample, Turn
from warren.data.shards import Limits, ShardMaker
from warren.errors import CorruptDataError, StorageError
from warren.storage import Location

IMAGE = raw_pairs.colour_image(0)
TALK = raw_pairs.messages(0)
CAPTION, CONVERSATIONS = ColumnsConfig(caption="caption"), ColumnsConfig(conversations="conversations")
QUESTIONS = ColumnsConfig(question="question", answer="answer")


def ingest(config: IngestConfig) -> tuple[list[Sample], list[tuple[str, str, str]]]:
    """Return the samples and the (key, source, reason) of what is quarantined, through shards and receipts."""
    from warren.data.manifest import Manifest
    from warren.data.stream import iter_samples

    with TemporaryDirectory() as name:
        folder = Location(name)
        maker = ShardMaker(importers(config)[0], folder, Limits(config.max_pixels, config.max_characters), 50, 50)
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


Write = Callable[..., IngestConfig]
JSON_WRITERS: list[Write] = [write_json, write_jsonl, write_csv, write_tar]
PARTS = ["image", "image_url", "text", "audio", None, 7, ["text"]]
NASTY = [
    "", " ", "\0", "a\0b.jpg", "\ud83d", "cut \ud83d", "..", ".", "./", "../ok.jpg", "/", "/dev/zero", "/dev/null",
    "~", "//", "ok.jpg", "./ok.jpg", "ok.jpg/x.jpg", "folder", "x" * 5000, "s3://", "s3://x", "gs://a/b", "file://",
    "file:///", "://", "http://", "https://[::1", "http://\ud83d/", "http://a b/", "data:", "data:,",
    "data:image/png;base64,", "data:;base64,%%%", "data:image/png;base64," + "A" * 5000, "iVBORw0KGgo" + "A" * 100,
    "[", "[]", "[1]", '["ok.jpg"]', "{}", "nan", "<image>", "<image>" * 3, "🦉", "\u2028", "\r\n", '"', "'", "-1",
    "user", "system", "assistant", "GPT",
]  # fmt: skip
scalars = st.one_of(
    st.sampled_from(NASTY),
    st.text(st.characters(), max_size=8),
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(),
)
names = st.sampled_from(
    ["from", "value", "role", "content", "type", "text", "image", "image_url", "url", "bytes", "path", "index", "data"]
)
values = st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(names, v, max_size=3), max_leaves=8)
messages = st.lists(
    st.one_of(
        values,
        st.fixed_dictionaries(
            {"from": st.sampled_from(["human", "gpt", "system"]) | values, "value": values},
        ),
        st.fixed_dictionaries(
            {
                "role": st.sampled_from(["user", "assistant"]) | values,
                "content": st.lists(
                    st.fixed_dictionaries({"type": st.sampled_from(PARTS), "text": values, "image_url": values})
                ),
            }
        ),
    ),
    max_size=3,
)
FIELDS = ["id", "url", "status", "error_message", "image", "images", "conversations", "messages", "caption", "question",
          "answer"]  # fmt: skip
good = st.sampled_from(
    [
        {"id": "1", "image": "ok.jpg", "conversations": TALK, "caption": "a", "question": "b?", "answer": "c"},
        {"image": "ok.jpg", "caption": "a"},
        {"image": ["ok.jpg", "ok.jpg"], "question": "b?", "answer": "c"},
    ]
)
hostile = st.builds(
    lambda record, changes: {**record, **changes},
    good,
    st.dictionaries(st.sampled_from(FIELDS), values | messages, max_size=3),
)


@pytest.mark.parametrize("write", JSON_WRITERS)
@given(
    records=st.lists(hostile, min_size=1, max_size=6),
    columns=st.sampled_from([CAPTION, CONVERSATIONS, QUESTIONS, ColumnsConfig()]),
    add_image_marks=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_what_goes_in_comes_out_or_is_quarantined(
    write: Write, records: list[dict[str, Any]], columns: ColumnsConfig, add_image_marks: bool
) -> None:
    if write in (write_csv, write_jsonl) and not columns.names_text:
        columns = CAPTION
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "ok.jpg").write_bytes(IMAGE)
        (folder / "folder").mkdir()
        config = write(folder, records, columns, add_image_marks=add_image_marks, download_deadline_s=0.01)
        samples, bad = ingest(config)
    assert len(samples) + len(bad) == len(records)
    assert not [reason for _, _, reason in bad if "it cannot be read: " in reason], "every reason is foreseen"


@given(records=st.lists(st.tuples(values, values, values), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None)
def test_hostile_parquet_rows_are_counted(records: list[tuple[Any, Any, Any]]) -> None:
    """Parquet columns have one type, so a file has one hostile record and a good one of the same type."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "ok.jpg").write_bytes(IMAGE)
        for image, caption, talk in records:
            rows = [{"image": image, "caption": caption, "conversations": talk}]
            for columns in (CAPTION, CONVERSATIONS):
                try:
                    config = write_parquet(folder, rows, columns, download_deadline_s=0.01)
                except (pa.ArrowException, UnicodeEncodeError, OverflowError, TypeError):
                    continue  # Parquet cannot hold it
                samples, bad = ingest(config)
                assert len(samples) + len(bad) == 1


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("image", "folder", "no file but a folder"),
        ("image", "a\0b.jpg", "NUL or half of a surrogate pair"),
        ("image", "cut \ud83d.jpg", "NUL or half of a surrogate pair"),
        ("image", "ok.jpg/x.jpg", "Not a directory"),
        ("image", "x" * 5000, "File name too long"),
        ("image", "/dev/zero", "no file but a folder or device"),
        ("image", "gs://b/x.jpg", "storage is one of"),
        ("image", "data:image/png;base64,!!!", "no Base64"),
        ("image", "data:image/png;base64," + "A" * 5000, "no known image format"),
        ("image", {"bytes": "!!"}, "no Base64"),
        ("image", 7, "named by '7'"),
        ("image", ["ok.jpg", None], "1 image marks in the text, but 2 images"),
        ("id", "\ud83d", "its source is not valid Unicode"),
        ("conversations", [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "cut \ud83d"}],
         "its turn 1 is not valid Unicode"),
        ("conversations", [{"role": ["user"], "content": "x"}], 'message 0 is from "[\'user\']"'),
        ("conversations", [{"role": "user", "content": [{"type": "audio"}]}], "part of type 'audio'"),
        ("conversations", "no list", "its conversations are no JSON"),
        ("conversations", {"from": "human"}, "conversations are a dict"),
        ("conversations", [*TALK, {"from": "system", "value": "x"}], "message 2 is from 'system'"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("write", [write_json, write_jsonl])
def test_one_bad_value_is_one_sample(write: Write, tmp_path: Path, field: str, value: object, reason: str) -> None:
    (tmp_path / "ok.jpg").write_bytes(IMAGE)
    (tmp_path / "folder").mkdir()
    record = {"id": "1", "image": "ok.jpg", "conversations": TALK}
    samples, bad = ingest(write(tmp_path, [record, {**record, field: value}, record], CONVERSATIONS))
    if field == "id" and write is write_jsonl:
        assert len(samples) == 3  # a table's rows are named by their place
        return
    assert len(samples) == 2
    [(_, source, found)] = bad
    assert reason in found
    assert source.startswith("x.json")


@pytest.mark.parametrize(
    ("text", "good", "reasons"),
    [
        ("7, null, [1], RECORD", 1, ["object but a int", "object but a NoneType", "object but a list"]),
        ("RECORD, {\"a\": " + "[" * 50_000 + "]" * 50_000 + "}, RECORD", 2, ["Python cannot hold its JSON"]),
        ("RECORD, {\"a\": " + "1" * 5000 + "}, RECORD", 2, ["Python cannot hold its JSON"]),
        ("RECORD, " + "1" * 5000 + ", RECORD", 2, ["Python cannot hold its JSON"]),
    ],
)  # fmt: skip
def test_json_values_that_are_no_records_are_counted(tmp_path: Path, text: str, good: int, reasons: list[str]) -> None:
    (tmp_path / "ok.jpg").write_bytes(IMAGE)
    record = json.dumps({"image": "ok.jpg", "conversations": TALK})
    (tmp_path / "x.json").write_text(f"[{text.replace('RECORD', record)}]")
    samples, bad = ingest(raw_pairs.config("bunny-json", path=f"{tmp_path}/x.json"))
    assert len(samples) == good
    assert len(bad) == len(reasons)
    assert all(reason in entry[2] for reason, entry in zip(reasons, bad, strict=True))


@pytest.mark.parametrize(
    ("name", "text", "good", "reasons"),
    [
        ("x.tsv", 'caption\timage\n"one\tok.jpg\ntwo\tok.jpg\nthree" end\tok.jpg\nfour\tok.jpg\n', 4, []),
        ("x.tsv", 'caption\timage\r\na "b" c\tok.jpg\r\n', 1, []),
        ("x.csv", 'image,caption\nok.jpg,a 5" screen\nok.jpg,x\n', 2, []),
        ("x.csv", 'image,caption\nok.jpg,"one\nok.jpg,two\nok.jpg,three" end\nok.jpg,four\n', 1, ["it is no CSV"]),
        ("x.csv", "image,caption\nok.jpg,a, b\nok.jpg,x\n", 1, ["3 cells, the header 2"]),
        ("x.csv", f"image,caption\nok.jpg,{'x' * 200_000}\nok.jpg,x\n", 1, ["characters; at most 2000"]),
        ("x.csv", b"image,caption\nok.jpg,caf\xe9\nok.jpg,x\n", 1, ["not UTF-8"]),
        ("x.CSV", "image,caption\n\n   \nok.jpg,x\n\n", 1, []),
        ("x.csv", "image,caption\rok.jpg,x\rok.jpg,y\r", 2, []),
        ("x.csv", b'\xef\xbb\xbf"image","caption"\nok.jpg,x\n', 1, []),
        ("x.jsonl", b'\xef\xbb\xbf{"image": "ok.jpg", "caption": "x"}\n', 1, []),
        ("x.jsonl", b'{"caption": "caf\xe9"}\n{"image": "ok.jpg", "caption": "x"}', 1, ["not UTF-8"]),
        ("x.jsonl", '{"image": "ok.jpg", "caption": "x"}{}\n7\n\n', 0, ["no JSON object", "object but a int"]),
        ("x.jsonl", '{"image": ' + "[" * 50_000 + "\n", 0, ["no JSON object"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("packed", [False, True])
def test_rows_of_tables(
    tmp_path: Path, name: str, text: str | bytes, good: int, reasons: list[str], packed: bool
) -> None:
    (tmp_path / "ok.jpg").write_bytes(IMAGE)
    data = text if isinstance(text, bytes) else text.encode()
    path = tmp_path / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(data) if packed else data)
    samples, bad = ingest(raw_pairs.config("table", path=str(path), columns=CAPTION))
    assert len(samples) == good
    assert len(bad) == len(reasons)
    assert all(reason in entry[2] for reason, entry in zip(reasons, bad, strict=True))


TEXT = b"a caption"


def pairs(*stems: str) -> list[tuple[str, bytes]]:
    return [(f"{stem}.{suffix}", data) for stem in stems for suffix, data in (("jpg", IMAGE), ("txt", TEXT))]


def images(*names: str) -> list[tuple[str, bytes]]:
    return [(name, IMAGE) for name in names]


JSON_CAPTION = b'{"caption": "a"}'
NO_TEXT = "neither a caption"
# What is in the tar, which samples it gives, and why others are quarantined.
TARS: dict[str, tuple[list[tuple[str, bytes]], list[str], list[str]]] = {
    "dots in keys": (pairs("p.0", "p.1", "p.2", "z"), ["p.0", "p.1", "p.2", "z"], []),
    "many dots": (pairs("a.b.c", "1.5", "x.jpg"), ["a.b.c", "1.5", "x.jpg"], []),
    "dots in words": (pairs("a.v1", "a.last"), ["a.v1", "a.last"], []),
    "fields with dots": ([("0.input.jpg", IMAGE), ("0.outputs.txt", TEXT)], ["0"], []),
    "a page without a text": ([*pairs("p.0"), *images("p.1.jpg")], ["p.0"], [NO_TEXT]),
    "a numbered image beside a pair": ([*pairs("p"), *images("p.1.jpg")], ["p"], [NO_TEXT]),
    "two captions": (
        [("0.jpg", IMAGE), ("0.en.txt", b"a"), ("0.de.txt", b"b")],
        [],
        ["2 texts: 0.jpg, 0.en.txt, 0.de.txt"],
    ),
    "several images": ([*images("0.0.jpg", "0.1.jpg"), ("0.txt", TEXT)], ["0"], []),
    "other fields": ([*pairs("0"), ("0.seg.png", IMAGE), ("0.cls", b"7")], ["0"], []),
    "nothing known": ([("0.cls", b"7"), ("README", b"hello"), *pairs("1")], ["1"], ["0.cls", "README"]),
    "equal names": (pairs("0", "0"), ["0", "0"], []),
    "upper case": ([("A.JPG", IMAGE), ("A.TXT", TEXT)], ["A"], []),
    "apart": ([*images("0.jpg", "1.jpg"), ("0.txt", TEXT)], [], [NO_TEXT, NO_TEXT, "no image"]),
    "folders": (pairs("a/0", "b/0", "a.b/0"), ["a/0", "b/0", "a.b/0"], []),
    "what macOS adds": ([("._0.jpg", b"x"), ("0.jpg", IMAGE), ("._0.txt", b"x"), ("0.txt", TEXT)], ["0"], []),
    "hidden": (pairs(".0"), [".0"], []),
    "no unicode": (pairs("caf\udce9", "b"), ["b"], ["not valid Unicode"]),
    "no unicode inside": (
        [*images("0.jpg"), ("0.txt", b"caf\xe9"), *images("1.jpg"), ("1.json", b"{")],
        [],
        ["not UTF-8", "no JSON"],
    ),
    "url cut": ([*pairs("0"), ("0.json", rb'{"url": "\ud83d"}')], [], ["source is not valid Unicode"]),
    "caption in json": (
        [*images("0.jpg"), ("0.json", JSON_CAPTION), *images("1.jpg"), ("1.txt", b" "), ("1.json", JSON_CAPTION)],
        ["0", "1"],
        [],
    ),
}


@pytest.mark.parametrize("name", TARS)
def test_every_file_of_a_tar_is_in_a_sample(name: str, tmp_path: Path) -> None:
    members, keys, reasons = TARS[name]
    samples, bad = ingest(tar_of(tmp_path, members))
    assert [sample.key.split("-", 2)[2] for sample in samples] == keys
    assert len(bad) == len(reasons), bad
    for reason, entry in zip(reasons, bad, strict=True):
        assert reason in entry[2]
    assert name != "several images" or len(samples[0].images) == 2


SUFFIXES = st.sampled_from(["jpg", "png", "txt", "json", "cls", ""])


@given(st.lists(st.sampled_from(["a", "a.0", "a.1", "a.x", "b", "b.1.2", ".c"]), max_size=12).flatmap(
    lambda stems: st.tuples(*[st.tuples(st.just(s), SUFFIXES) for s in stems])
))  # fmt: skip
def test_no_image_and_no_text_of_a_tar_is_left_out(parts: tuple[tuple[str, str], ...]) -> None:
    from warren.data.importers.members import Member, group_members

    members = [
        Member(f"{stem}.{suffix}" if suffix else stem, str(n).encode()) for n, (stem, suffix) in enumerate(parts)
    ]
    groups = list(group_members(members))
    held = [member for _, group in groups for member in group]
    assert len(held) == len(set(held))
    for member in set(members) - set(held):
        owner = next(group for name, group in groups if name == member.first_part)
        assert not member.stem.rpartition(".")[2].isdigit()
        assert any(m.is_image for m in owner)
        assert any(m.is_text for m in owner)


def test_links_in_a_tar_are_named(tmp_path: Path) -> None:
    config = tar_of(tmp_path, [("0.jpg", IMAGE), ("0.txt", TEXT)])
    with tarfile.open(tmp_path / "x.tar", "a") as tar:
        link = tarfile.TarInfo("1.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "0.jpg"
        tar.addfile(link)
    samples, bad = ingest(config)
    assert len(samples) == 1
    assert "'1.jpg' is a link" in bad[0][2]


def test_an_empty_file_among_good_ones_is_one_quarantined_sample(tmp_path: Path) -> None:
    (tmp_path / "ok.jpg").write_bytes(IMAGE)
    record = {"image": "ok.jpg", "conversations": TALK, "caption": "a"}
    for write, suffix, columns in (
        (write_json, "json", CONVERSATIONS),
        (write_jsonl, "jsonl", CAPTION),
        (write_csv, "csv", CAPTION),
        (write_tar, "tar", ColumnsConfig()),
        (write_parquet, "parquet", CAPTION),
    ):
        folder = tmp_path / suffix
        folder.mkdir()
        config = write(folder, [record], columns, images=str(tmp_path))
        (folder / f"a.{suffix}").write_bytes(b"")
        (folder / "b.json.gz").write_bytes(gzip.compress(b"")) if suffix == "json" else None
        samples, bad = ingest(config.model_copy(update={"path": str(folder)}))
        assert len(samples) == 1, suffix
        assert all(re.fullmatch(r"the file '[ab]\.\S+' is empty \(0 bytes\)", entry[2]) for entry in bad)
        assert len(bad) == 1 + (suffix == "json"), suffix


def test_an_empty_tar_and_damaged_gzip(tmp_path: Path) -> None:
    config = tar_of(tmp_path, [("0.jpg", IMAGE), ("0.txt", TEXT)])
    tar_of(tmp_path, [], "nothing.tar")
    assert [len(part) for part in ingest(config)] == [1, 0]
    (tmp_path / "x.json.gz").write_bytes(gzip.compress(b"[{}]" * 1000)[:-10])
    with pytest.raises(CorruptDataError, match=r"x\.json\.gz is damaged or ends early"):
        ingest(raw_pairs.config("bunny-json", path=f"{tmp_path}/x.json.gz"))


def test_parquet_text_that_is_not_utf_8_is_one_row(tmp_path: Path) -> None:
    (tmp_path / "ok.jpg").write_bytes(IMAGE)
    offsets, data = struct.pack("<4i", 0, 1, 5, 6), b"acaf\xe9b"
    captions = pa.StringArray.from_buffers(3, pa.py_buffer(offsets), pa.py_buffer(data))
    pq.write_table(pa.table({"image": ["ok.jpg"] * 3, "caption": captions}), tmp_path / "x.parquet")
    samples, bad = ingest(raw_pairs.config("parquet", path=f"{tmp_path}/x.parquet", columns=CAPTION))
    assert [sample.turns[1].text for sample in samples] == ["a", "b"]
    assert "row 1" in bad[0][1]


@pytest.mark.parametrize(
    ("error", "is_the_samples"),
    [
        (TypeError("x"), True),
        (AttributeError("x"), True),
        (RecursionError(), True),
        (struct.error("x"), True),
        (OSError("x"), True),
        (StorageError("away"), False),
        (MemoryError(), False),
        (NameError("x"), False),
    ],
)
def test_a_samples_errors_are_its_own_and_storages_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, is_the_samples: bool
) -> None:
    from warren.data import shards
    from warren.data.importers.record import RecordReader

    def fail(*_: object) -> Any:
        raise error

    (tmp_path / "ok.jpg").write_bytes(IMAGE)
    config = write_json(tmp_path, [{"image": "ok.jpg", "conversations": TALK}], ColumnsConfig())
    for where, name in ((RecordReader, "sample"), (shards, "decode_image")):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, fail)
            if is_the_samples:
                [(_, source, reason)] = ingest(config)[1]
                assert type(error).__name__ in reason
                assert source.startswith("x.json")
            else:
                with pytest.raises(type(error)):
                    ingest(config)


def test_a_raw_that_is_unusable_says_why() -> None:
    with pytest.raises(Exception, match="because"):
        Raw.unusable("key", "source", "because").load()
    system = Sample("a", (), (Turn("user", "q"), Turn("assistant", "a")), "x", system="be brief")
    assert Sample.from_row(system.to_row()) == system
