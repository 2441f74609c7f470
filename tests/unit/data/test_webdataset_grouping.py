"""Tars: every file is in a sample or named in quarantine, whatever the dots in its name."""

import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raw_records import IMAGE, ingest, tar_of
from warren.data.importers.webdataset_grouping import Member, group_members

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


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["a", "a.0", "a.1", "a.x", "b", "b.1.2", ".c"]), max_size=12).flatmap(
    lambda stems: st.tuples(*[st.tuples(st.just(s), SUFFIXES) for s in stems])
))  # fmt: skip
def test_no_image_and_no_text_of_a_tar_is_left_out(parts: tuple[tuple[str, str], ...]) -> None:
    members = [
        Member(f"{stem}.{suffix}" if suffix else stem, str(n).encode()) for n, (stem, suffix) in enumerate(parts)
    ]
    groups = list(group_members(members))
    held = [member for _, group in groups for member in group]
    assert len(held) == len(set(held))
    for member in set(members) - set(held):
        assert not member.stem.rpartition(".")[2].isdigit()
        owners = [group for name, group in groups if name == member.first_part]
        assert any(any(m.is_image for m in owner) and any(m.is_text for m in owner) for owner in owners)


def test_links_in_a_tar_are_named(tmp_path: Path) -> None:
    config = tar_of(tmp_path, [("0.jpg", IMAGE), ("0.txt", TEXT)])
    with tarfile.open(tmp_path / "x.tar", "a") as tar:
        link = tarfile.TarInfo("1.jpg")
        link.type, link.linkname = tarfile.LNKTYPE, "0.jpg"
        tar.addfile(link)
    samples, bad = ingest(config)
    assert len(samples) == 1
    assert "'1.jpg' is a link" in bad[0][2]
