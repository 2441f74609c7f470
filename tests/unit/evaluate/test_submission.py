"""Submissions are files that the benchmarks' servers take."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from test_benchmark_questions import lines, make_mmmu, put
from test_benchmarks import CASES, ORACLE, expected

from warren.cli.score import main
from warren.evaluate.submission import sheet

_MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"


def submit(name: str, out: Path, *options: str) -> int:
    answers, reference = (str(ORACLE / path) for path in CASES[name])
    arguments = ["--benchmark", name, "--convention", "bunny", "--out", str(out.parent / "scores.json")]
    return main([*arguments, "--answers", answers, "--reference", reference, "--submission", str(out), *options])


def cells(data: bytes) -> list[list[Any]]:
    """Read a sheet as a table, by the places of its cells; empty cells are None."""
    archive = zipfile.ZipFile(io.BytesIO(data))
    assert archive.testzip() is None
    for name in archive.namelist():
        ElementTree.fromstring(archive.read(name))
    table: list[list[Any]] = []
    for row in ElementTree.fromstring(archive.read("xl/worksheets/sheet1.xml")).iter(f"{_MAIN}row"):
        values: dict[str, Any] = {}
        for cell in row:
            place = str(cell.get("r"))
            assert place.endswith(str(row.get("r")))
            number = cell.find(f"{_MAIN}v")
            text = cell.find(f"{_MAIN}is/{_MAIN}t")
            values[place.rstrip("0123456789")] = (
                json.loads(number.text or "") if number is not None else (text.text or "" if text is not None else None)
            )
        table.append([values.get(letters) for letters in ("A", "B", "C", "D", "E", "F", "G", "H", "I", "J")])
    return table


@pytest.mark.parametrize("name", ["vqav2", "vizwiz", "mmvet"])
def test_json_is_what_bunny_would_send(name: str, tmp_path: Path) -> None:
    assert submit(name, tmp_path / "upload.json") == 0
    assert json.loads((tmp_path / "upload.json").read_text()) == expected(f"{name}/expected_upload.json")


def test_seed_bench_gets_json_lines(tmp_path: Path) -> None:
    assert submit("seed", tmp_path / "upload.jsonl") == 0
    assert lines(tmp_path / "upload.jsonl") == lines(ORACLE / "seed/expected_upload.jsonl")


def test_mmbench_gets_a_sheet_with_bunnys_cells(tmp_path: Path) -> None:
    assert submit("mmbench", tmp_path / "upload.xlsx") == 0
    truth = expected("mmbench/expected_sheet.json")
    head, *rows = cells((tmp_path / "upload.xlsx").read_bytes())
    width = len(truth["columns"])
    assert head[:width] == truth["columns"]
    assert [row[:width] for row in rows] == truth["rows"]
    first = (tmp_path / "upload.xlsx").read_bytes()
    submit("mmbench", tmp_path / "upload.xlsx")
    assert (tmp_path / "upload.xlsx").read_bytes() == first, "the same answers give the same bytes"


def test_mmmus_test_split_gets_an_object_of_answers(tmp_path: Path) -> None:
    make_mmmu(tmp_path)
    truths = {f"test_Art_{n}": {"question_type": "multiple-choice", "ground_truth": "?"} for n in (1, 2)}
    put(tmp_path / "answers.json", truths)
    options = {"all_choices": ["A", "B"], "index2ans": {"A": "red", "B": "blue"}}
    put(tmp_path / "a.jsonl", [{"id": key, "response": "(B)", **options} for key in truths])
    arguments = ["--benchmark", "mmmu", "--answers", f"{tmp_path}/a.jsonl", "--reference", f"{tmp_path}/answers.json"]
    out = ["--out", f"{tmp_path}/scores.json", "--submission", f"{tmp_path}/upload.json"]
    assert main([*arguments, *out]) == 0
    assert json.loads((tmp_path / "upload.json").read_text()) == dict.fromkeys(truths, "B")


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("vqav2", "upload.xlsx", "ends in .json"),
        ("mmbench", "upload.json", "ends in .xlsx"),
        ("mme", "upload.json", "there is nothing to submit"),
    ],
)
def test_a_submission_of_another_format_is_refused(
    name: str, file: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(name, tmp_path / file) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / file).exists()


def test_a_sheet_holds_any_text() -> None:
    hostile = ["<b>&amp;]]></b>", " a\tb\nc ", "\x00\x0b\ud800\uffff", "=1+1", "", "北京 🙂", "x" * 40_000]
    columns = [f"column {n}" for n in range(7)]
    (head, row) = cells(sheet(columns, [hostile]))
    assert head[:7] == columns
    assert row[:6] == [hostile[0], hostile[1], "    ", "=1+1", "", hostile[5]]
    assert len(row[6]) == 32_767
    assert cells(sheet(["a", "b"], [[None, 1.5], [True, -3]]))[1:] == [
        [None, 1.5, *[None] * 8],
        ["True", -3, *[None] * 8],
    ]
    wide = ElementTree.fromstring(
        zipfile.ZipFile(io.BytesIO(sheet([str(n) for n in range(704)], []))).read("xl/worksheets/sheet1.xml")
    )
    places = [str(cell.get("r")) for cell in wide.iter(f"{_MAIN}c")]
    assert [places[n] for n in (0, 25, 26, 51, 701, 702)] == ["A1", "Z1", "AA1", "AZ1", "ZZ1", "AAA1"]
