"""Stored answers: written once, read for scoring, and a failed request is never a score."""

import dataclasses
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_benchmarks import CASES, ORACLE, approx, at, scored

from warren.cli.score import main
from warren.errors import DataError, QuarantineError
from warren.evaluate.answer_file import AnswersOrigin, StoredAnswer, load_answers, read_stored, write_answers
from warren.evaluate.benchmarks.reference_files import read_answers
from warren.evaluate.score_answers import score_answers
from warren.storage import Location

ORIGIN = AnswersOrigin("pope", "all", "bunny", "run at step 5", {"model": "ab"}, {"warren": "0.1.0"})


def file(folder: Path, name: str = "answers.parquet") -> Location:
    return Location.parse(str(folder / name))


def stored(name: str) -> list[StoredAnswer]:
    """Return the oracle's answers as Warren would store them: unique keys, in order."""
    rows, seen = [], dict[str, int]()
    for answer in read_answers(at(CASES[name][0]))[0]:
        count = seen[answer.key] = seen.get(answer.key, 0) + 1
        key = answer.key if count == 1 else f"{answer.key}#{count}"
        rows.append(StoredAnswer(key, answer.prompt, answer.text, 3, 0.25))
    return rows


def test_answers_come_back_and_the_same_answers_are_the_same_bytes(tmp_path: Path) -> None:
    rows = [
        StoredAnswer("a", "Q", "yes", 1, 0.5),
        StoredAnswer("b", "Q2", error="HTTP 500"),
        StoredAnswer("c", "Q", ""),
    ]
    for name in ("one.parquet", "two.parquet"):
        write_answers(file(tmp_path, name), rows, ORIGIN)
    assert read_stored(file(tmp_path, "one.parquet")) == (rows, ORIGIN)
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    answers, broken, origin = load_answers(file(tmp_path, "one.parquet"))
    assert [answer.key for answer in answers] == ["a", "c"], "an empty answer is an answer"
    assert (set(answers.failed), broken, origin) == ({"b"}, 0, ORIGIN)


@pytest.mark.parametrize("name", ["mme", "pope", "scienceqa", "seed", "gqa", "textvqa", "vqav2", "vizwiz", "mmbench"])
def test_stored_answers_score_as_answers_files_do(name: str, tmp_path: Path) -> None:
    write_answers(file(tmp_path), stored(name), AnswersOrigin(name))
    found = score_answers(name, file(tmp_path), at(CASES[name][1]), "bunny")
    truth = scored(name)
    assert found["scores"] == approx(truth["scores"])
    assert found["submission"] == truth["submission"]
    assert found["measures"] == truth["measures"]


def test_a_failed_request_ends_scoring_unless_it_is_allowed(tmp_path: Path) -> None:
    rows = stored("pope")
    rows[3] = StoredAnswer(rows[3].key, rows[3].question, error="HTTP 500")
    write_answers(file(tmp_path), rows, ORIGIN)
    with pytest.raises(QuarantineError, match=r"1 of \d+ questions failed \('4'\).*never a score"):
        score_answers("pope", file(tmp_path), at("pope"))
    found = score_answers("pope", file(tmp_path), at("pope"), max_failed_fraction=0.1)
    assert (found["num_failed"], found["failed"]) == (1, ["4"])
    assert "4" not in found["per_question"]
    assert sum(split["samples"] for split in found["scores"]["splits"].values()) == len(rows) - 1


@pytest.mark.parametrize("name", ["mme", "scienceqa", "seed", "gqa", "vizwiz", "textvqa"])
def test_what_failed_is_in_no_denominator(name: str, tmp_path: Path) -> None:
    rows = stored(name)
    failed = dataclasses.replace(rows[0], answer=None, error="timeout")
    write_answers(file(tmp_path), [failed, *rows[1:]], AnswersOrigin(name))
    found = score_answers(name, file(tmp_path), at(CASES[name][1]), max_failed_fraction=0.5)
    whole = scored(name)
    assert found["failed"] == [failed.key]
    assert failed.key not in found["per_question"]
    if name == "vizwiz":
        assert len(found["submission"]) == len(rows) - 1
        return
    counts = [max(len(measure["keys"]) for measure in report["measures"]) for report in (found, whole)]
    assert counts[0] == counts[1] - (2 if name == "mme" else 1), "MME leaves out both questions about the image"


def test_files_that_are_no_answers_are_named(tmp_path: Path) -> None:
    twice = [StoredAnswer("a", "Q", "yes"), StoredAnswer("a", "Q", "no")]
    with pytest.raises(DataError, match="1 questions are answered twice \\('a'\\)"):
        write_answers(file(tmp_path), twice, ORIGIN)
    for row in (StoredAnswer("a", "Q"), StoredAnswer("a", "Q", "yes", error="HTTP 500")):
        with pytest.raises(DataError, match="an answer or an error, and not both"):
            write_answers(file(tmp_path), [row], ORIGIN)
    pq.write_table(pa.table({"key": ["a"], "text": ["b"]}), tmp_path / "answers.parquet")
    with pytest.raises(DataError, match=r"answers need columns key, question, answer.*found key, text"):
        load_answers(file(tmp_path))
    (tmp_path / "answers.parquet").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="not a readable Parquet file of answers"):
        load_answers(file(tmp_path))
    write_answers(file(tmp_path), [StoredAnswer("a", "Q", "yes")], ORIGIN)
    with pytest.raises(DataError, match="these are answers of pope, not of mme"):
        score_answers("mme", file(tmp_path), at(CASES["mme"][1]))


def test_the_command_takes_parquet_and_prints_intervals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_answers(file(tmp_path), stored("mme"), AnswersOrigin("mme"))
    arguments = [
        "--benchmark",
        "mme",
        "--answers",
        str(tmp_path / "answers.parquet"),
        "--out",
        str(tmp_path / "s.json"),
    ]
    assert main(arguments) == 1
    assert "mme needs a reference" in capsys.readouterr().err
    assert main([*arguments, "--reference", str(ORACLE / CASES["mme"][1])]) == 0
    assert "Perception/total: " in (text := capsys.readouterr().out)
    assert "95 % interval" in text
    report = json.loads((tmp_path / "s.json").read_text())
    for measure in report["measures"]:
        assert measure["interval"]["low"] <= measure["value"] <= measure["interval"]["high"]
