"""Hostile values in every field of every importer: what went in came out or is quarantined."""

import gzip
import json
import re
import struct
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
from raw_records import IMAGE, ingest, tar_of, write_csv, write_json, write_jsonl, write_parquet, write_tar
from warren.config import IngestConfig
from warren.config.ingest import ColumnsConfig
from warren.data.importers import Raw
from warren.data.sample import Sample, Turn
from warren.errors import CorruptDataError, StorageError

TALK = raw_pairs.messages(0)
CAPTION, CONVERSATIONS = ColumnsConfig(caption="caption"), ColumnsConfig(conversations="conversations")
QUESTIONS = ColumnsConfig(question="question", answer="answer")


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
    config = tar_of(tmp_path, [("0.jpg", IMAGE), ("0.txt", b"a caption")])
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
