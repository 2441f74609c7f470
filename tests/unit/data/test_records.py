"""What people have: every common form of a record becomes the sample that is meant."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

import raw_pairs
from warren.config.ingest import ColumnsConfig, IngestConfig
from warren.data.importers.files import find_files
from warren.data.importers.image_sources import ImageSources
from warren.data.importers.inline_images import inlined
from warren.data.importers.record import RecordReader
from warren.data.sample import Sample
from warren.data.template import get_template
from warren.errors import BadSampleError, ConfigError, CorruptDataError

A, B = raw_pairs.colour_image(0), raw_pairs.colour_image(1)
TEXTS = {"A": base64.b64encode(A).decode(), "B": base64.b64encode(B).decode()}
URI = f"data:image/jpeg;base64,{TEXTS['A']}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.jpg").write_bytes(A)
    (tmp_path / "b.jpg").write_bytes(B)
    (tmp_path / "[2024] x.jpg").write_bytes(A)
    return tmp_path


def read(folder: Path, record: object, columns: ColumnsConfig | None = None, **options: Any) -> Sample:
    reader = RecordReader(columns or ColumnsConfig(), ImageSources(str(folder)), **options)
    return reader.sample("key", "source", record).check()


def said(role: str, text: object) -> dict[str, object]:
    return {"role": role, "content": text}


def text_part(text: str) -> dict[str, object]:
    return {"type": "text", "text": text}


def image_part(url: object) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url}}


ANSWER = said("assistant", "yes")
FORMS: dict[str, tuple[dict[str, Any], tuple[bytes, ...], str]] = {
    "LLaVA": ({"image": "a.jpg", "conversations": raw_pairs.messages(0)}, (A,), "<image>\nwhich colour? 0"),
    "roles of both kinds": (
        {"image": "a.jpg", "messages": [{"from": "user", "value": "q <image>"}, said("assistant", "yes")]},
        (A,),
        "<image>\nq",
    ),
    "human as a role": ({"messages": [said("Human", "q"), said("gpt", "yes")]}, (), "q"),
    "images": (
        {"images": ["a.jpg", "b.jpg"], "messages": [said("user", "<image> and <image>?"), ANSWER]},
        (A, B),
        "<image> and <image>?",
    ),
    "marks of one message, one image": (
        {"images": ["a.jpg"], "messages": [said("user", "<image><image>q"), ANSWER]},
        (A,),
        "<image>\nq",
    ),
    "marks at the start": (
        {"image": ["a.jpg", "b.jpg"], "messages": [said("user", "<image>\n<image>\nq"), ANSWER]},
        (A, B),
        "<image>\n<image>\nq",
    ),
    "question": ({"image": "a.jpg", "question": "q", "answer": 7}, (A,), "<image>\nq"),
    "question with its mark": (
        {"image": "a.jpg", "question": "look <image> q", "answer": "yes"},
        (A,),
        "<image>\nlook  q",
    ),
    "question about two": (
        {"image": ["a.jpg", "b.jpg"], "question": "q", "answer": "yes"},
        (A, B),
        "<image>\n<image>\nq",
    ),
    "question without an image": ({"question": "q", "answer": "yes"}, (), "q"),
    "caption": ({"image": "a.jpg", "caption": " yes "}, (A,), "<image>"),
    "parts": ({"messages": [said("user", [text_part("q"), image_part(URI)]), ANSWER]}, (A,), "<image>\nq"),
    "parts in order": (
        {
            "messages": [
                said("user", [text_part("p"), image_part("b.jpg"), text_part("q"), image_part("a.jpg")]),
                ANSWER,
            ]
        },
        (B, A),
        "p\n<image>\nq\n<image>",
    ),
    "parts of the Hub": (
        {
            "images": [{"bytes": A, "path": None}, {"bytes": B, "path": None}],
            "messages": [
                said(
                    "user",
                    [
                        {"type": "image", "index": 1, "text": None},
                        {"type": "text", "index": None, "text": "q"},
                        {"type": "image", "index": 0, "text": None},
                    ],
                ),
                ANSWER,
            ],
        },
        (B, A),
        "<image>\nq\n<image>",
    ),
    "parts that take the next image": (
        {
            "images": ["a.jpg", "b.jpg"],
            "messages": [
                said("user", [{"type": "image"}, text_part("q")]),
                ANSWER,
                said("user", [{"type": "image"}, text_part("r")]),
                ANSWER,
            ],
        },
        (A, B),
        "<image>\nq",
    ),
    "parts of Anthropic": (
        {
            "messages": [
                said(
                    "user",
                    [
                        {"type": "image", "source": {"type": "base64", "media_type": "image/jpeg", "data": TEXTS["A"]}},
                        text_part("q"),
                    ],
                ),
                ANSWER,
            ]
        },
        (A,),
        "<image>\nq",
    ),
    "Base64": ({"image": TEXTS["A"], "caption": "yes"}, (A,), "<image>"),
    "Base64 in lines": ({"image": base64.encodebytes(A).decode(), "caption": "yes"}, (A,), "<image>"),
    "Base64 in a mapping": ({"image": {"bytes": TEXTS["A"]}, "caption": "yes"}, (A,), "<image>"),
    "data URI": (
        {"image": URI.replace("data:", "DATA:").replace("base64", "charset=utf-8;BASE64"), "caption": "yes"},
        (A,),
        "<image>",
    ),
    "a list as text": ({"image": '["a.jpg", "b.jpg"]', "caption": "yes"}, (A, B), "<image><image>"),
    "brackets in a name": ({"image": "[2024] x.jpg", "caption": "yes"}, (A,), "<image>"),
    "dots in a path": ({"image": "./././a.jpg", "caption": "yes"}, (A,), "<image>"),
    "conversations as text": (
        {"image": "a.jpg", "conversations": json.dumps(raw_pairs.messages(0))},
        (A,),
        "<image>\nwhich colour? 0",
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_becomes_what_is_meant(name: str, folder: Path) -> None:
    record, images, text = FORMS[name]
    sample = read(folder, record)
    assert sample.images == images
    assert sample.turns[0].text == text
    assert sample.turns[1].text in ("yes", "7", "it is red ü")


def test_a_systems_text_takes_the_templates_place(folder: Path) -> None:
    record = {"messages": [said("system", "Be brief."), said("user", "q"), ANSWER]}
    sample = read(folder, record)
    assert sample.system == "Be brief."
    assert [turn.role for turn in sample.turns] == ["user", "assistant"]
    assert Sample.from_row(sample.to_row()) == sample
    assert sample.to_row()["turns"][0] == {"role": "system", "text": "Be brief."}
    segments = get_template("bunny").training(sample.turns, "</s>", sample.system)
    assert "".join(segment.text for segment in segments) == "Be brief. USER: q ASSISTANT: yes</s>"
    assert read(folder, record, drop_system=True).system is None
    with pytest.raises(BadSampleError, match="system text holds an image mark"):
        read(folder, {"messages": [said("system", "<image>"), *record["messages"][1:]], "image": "a.jpg"})


def test_marks_are_added_where_that_is_wanted(folder: Path) -> None:
    record = {"image": ["a.jpg", "b.jpg"], "messages": [said("user", "q"), ANSWER]}
    with pytest.raises(BadSampleError, match=r"0 image marks in the text, but 2 images; ingest.add_image_marks=true"):
        read(folder, record)
    assert read(folder, record, add_image_marks=True).turns[0].text == "<image>\n<image>\nq"
    assert read(folder, FORMS["LLaVA"][0], add_image_marks=True).turns[0].text == "<image>\nwhich colour? 0"


@pytest.mark.parametrize(
    ("text", "images", "message"),
    [
        ("<image>\n<image>\nq", ["a.jpg"] * 3, "2 image marks in the text, but 3 images"),
        ("<image>\n<image>\nq", [], "2 image marks in the text, but 0 images"),
    ],
)
def test_the_message_speaks_of_the_text_as_it_was_written(
    folder: Path, text: str, images: list[str], message: str
) -> None:
    with pytest.raises(BadSampleError, match=message):
        read(folder, {"image": images, "messages": [said("user", text), ANSWER]})


def test_columns_name_one_kind_of_text() -> None:
    for columns in (
        {"question": "q"},
        {"caption": "c", "conversations": "d"},
        {"question": "q", "answer": "a", "caption": "c"},
    ):
        with pytest.raises(ValueError, match=r"need each other|give one of"):
            ColumnsConfig(**columns)
    with pytest.raises(ValueError, match=r"needs 'columns.caption', 'columns.conversations', or 'columns.question'"):
        IngestConfig(source="table", path="x.csv", name="x")


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("", ["[2024]/a.json", "[2024]/b.JSON", "a.json", "b.json", "c.json.gz"]),
        ("*.json", ["[2024]/a.json", "a.json", "b.json"]),
        ("{a,b}.json", ["a.json", "b.json"]),
        ("[ab].json", ["a.json", "b.json"]),
        ("{a..c}.json", None),
        ("[2024]", ["[2024]/a.json", "[2024]/b.JSON"]),
        ("[2024]/a.json", ["[2024]/a.json"]),
        ("[2024]/*.JSON", ["[2024]/b.JSON"]),
        ("[2024]/b.JSON", ["[2024]/b.JSON"]),
        ("c.json.gz", ["c.json.gz"]),
        ("{a,nothing}.json", None),
        ("nothing.json", None),
        ("[z].json", None),
    ],
)
def test_which_files_a_path_means(tmp_path: Path, pattern: str, found: list[str] | None) -> None:
    (tmp_path / "[2024]").mkdir()
    for name in ("a.json", "b.json", "c.json.gz", "notes.md", "[2024]/a.json", "[2024]/b.JSON"):
        (tmp_path / name).write_text("[]")
    if found is None:
        with pytest.raises(ConfigError, match=r"no files that end in \.json, \.json\.gz are there"):
            find_files(f"{tmp_path}/{pattern}", (".json", ".json.gz"))
    else:
        files = find_files(f"{tmp_path}/{pattern}", (".json", ".json.gz"))
        assert [str(Path(file.uri).relative_to(tmp_path)) for file in files] == found


def test_numbered_shards(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number:05d}.tar").touch()
    assert len(find_files(f"{tmp_path}/{{00008..00011}}.tar", (".tar",))) == 4
    with pytest.raises(ConfigError, match=r"00012\.tar': no files"):
        find_files(f"{tmp_path}/{{00008..00012}}.tar", (".tar",))


def test_files_of_one_name_in_two_folders_give_keys_of_their_own(folder: Path) -> None:
    from warren.data.importers import importers

    for name in ("one", "two"):
        (folder / name).mkdir()
        (folder / name / "x.json").write_text(json.dumps([{"image": "a.jpg", "conversations": raw_pairs.messages(0)}]))
    [importer] = importers(raw_pairs.config("bunny-json", path=str(folder), images=str(folder)))
    assert len({raw.key for piece in importer.pieces(9) for raw in importer.read(piece)}) == 2
    (folder / "one" / "x.json").write_bytes("[]".encode("utf-16"))
    with pytest.raises(CorruptDataError, match=r"one/x\.json: byte 0 begins UTF-16"):
        list(importer.pieces(9))


def test_white_space_in_what_begins_as_base64_is_read_in_linear_time() -> None:
    """In quadratic time this would take hours."""
    assert inlined("/9j/" + " " * 1_000_000 + "!") is None
    assert inlined("/9j/" + "A" * 62 + "\n" * 1_000_000 + "==") is not None
