"""Benchmarks score answers as Bunny's own scripts do, to the last digit (tests/oracle/scoring)."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from warren.cli.score import main
from warren.errors import ConfigError, DataError
from warren.evaluate import benchmarks
from warren.evaluate.score_answers import score_answers
from warren.evaluate.scorers.vqa import normalise
from warren.storage import Location

ORACLE = Path(__file__).parents[2] / "oracle" / "scoring"
CASES = {  # answers, reference
    "mme": ("mme/answers/exp.jsonl", "mme/MME_Benchmark_release_version"),
    "pope": ("pope/answers.jsonl", "pope"),
    "scienceqa": ("scienceqa/answers.jsonl", "scienceqa"),
    "seed": ("seed/answers.jsonl", "seed/SEED-Bench.json"),
    "gqa": ("gqa/merge.jsonl", "gqa/testdev_balanced_questions.json"),
    "mmmu": ("mmmu/responses.jsonl", "mmmu/answer_dict.json"),
    "cmmmu": ("cmmmu/responses.jsonl", "cmmmu/data.jsonl"),
    "textvqa": ("textvqa/answers.jsonl", "textvqa/annotations.json"),
    "vqav2": ("vqav2/answers/test-dev/exp/merge.jsonl", "vqav2/bunny_vqav2_mscoco_test2015.jsonl"),
    "vizwiz": ("vizwiz/answers.jsonl", "vizwiz/questions.jsonl"),
    "mmvet": ("mmvet/answers.jsonl", "mmvet/answers.jsonl"),
    "mmbench": ("mmbench/answers/exp.jsonl", "mmbench/mmbench_dev.tsv"),
}


def at(path: str) -> Location:
    return Location.parse(str(ORACLE / path))


def expected(path: str) -> Any:
    return json.loads((ORACLE / path).read_text())


def scored(name: str, answers: str = "") -> dict[str, Any]:
    return score_answers(name, at(answers or CASES[name][0]), at(CASES[name][1]), "bunny")


def approx(value: Any) -> Any:
    """Compare numbers to 1e-9 at any depth."""
    if isinstance(value, dict):
        return {key: approx(each) for key, each in value.items()}
    return pytest.approx(value, abs=1e-9) if isinstance(value, float) else value


def rounded(value: Any, digits: int) -> Any:
    if isinstance(value, dict):
        return {key: rounded(each, digits) for key, each in value.items()}
    if isinstance(value, list):
        return [rounded(each, digits) for each in value]
    return round(value, digits) if isinstance(value, float) else value


@pytest.mark.parametrize("name", ["mme", "pope"])
def test_scores_equal_bunnys(name: str) -> None:
    assert scored(name)["scores"] == approx(expected(f"{name}/expected.json"))


def test_pope_finds_its_questions_beside_the_annotations() -> None:
    found = score_answers("pope", at("pope/answers.jsonl"), at("pope/annotations"), "bunny")
    assert found["scores"] == approx(expected("pope/expected.json"))


def test_scienceqa_counts_what_is_missing_as_wrong() -> None:
    found = scored("scienceqa")
    truth = expected("scienceqa/expected.json")
    truth.pop("outputs")
    assert found["scores"] == approx(truth)
    assert found["answered_fraction"] < 1
    assert found["scores"]["count"] == found["num_questions"]


def test_seed_and_gqa_print_bunnys_numbers() -> None:
    assert rounded(scored("seed")["scores"], 2) == expected("seed/expected.json")["printed_percent"]
    lines = (ORACLE / "seed/expected_upload.jsonl").read_text().splitlines()
    assert scored("seed")["submission"] == [json.loads(line) for line in lines]
    gqa = scored("gqa")
    assert rounded(gqa["scores"], 2) == expected("gqa/expected.json")
    assert gqa["submission"] == expected("gqa/expected_predictions.json")


def test_mmmu_reads_replies_and_draws_as_bunny() -> None:
    found, truth = scored("mmmu"), expected("mmmu/expected.json")
    assert found["scores"] == truth["scores"]
    assert found["random_fallback_ids"] == truth["random_fallback_ids"]
    assert found["random_fallback_fraction"] == len(truth["random_fallback_ids"]) / found["num_questions"]
    assert found["scores_with_random_fallback_counted_wrong"] == truth["scores_with_random_fallback_counted_wrong"]
    per_question = found["per_question"]
    assert {key: row["parsed"] for key, row in per_question.items()} == expected("mmmu/expected_parsed.json")
    open_ones = {key: row for key, row in per_question.items() if "values" in row}
    assert {key: row["values"] for key, row in open_ones.items()} == truth["open_parsed_sorted"]
    assert {key: row["right"] for key, row in open_ones.items()} == truth["open_correct"]


def test_cmmmu_reads_replies_and_draws_as_bunny() -> None:
    truth = expected("cmmmu/expected.json")
    for answers, table in (("cmmmu/responses.jsonl", "response_table"), ("cmmmu/answers.jsonl", "answer_table")):
        found = scored("cmmmu", answers)
        rows = [[title, str(e["correct"]), str(e["num"]), f"{e['acc']:.6g}"] for title, e in found["scores"].items()]
        assert rows == truth[table][1:]
    found = scored("cmmmu")
    decided = {key: row["correct"] for key, row in found["per_question"].items()}
    assert decided == {key: row["correct"] for key, row in truth["per_id"].items()}
    assert found["random_fallback_ids"] == [str(key) for key in truth["random_fallback_ids"]]


def test_textvqa_is_soft_accuracy_over_normalised_answers() -> None:
    found, truth = scored("textvqa"), expected("textvqa/expected.json")
    assert round(found["scores"]["percent"], 2) == truth["printed_percent"]
    for ours, theirs in (
        ("score", "per_id"),
        ("stvqa_accuracy", "stvqa_accuracy_per_id"),
        ("stvqa_anls", "stvqa_anls_per_id"),
    ):
        assert {key: row[ours] for key, row in found["per_question"].items()} == approx(truth[theirs])
    for row in expected("textvqa/normaliser.json"):
        assert normalise(row["raw"]) == row["normalised"]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("vqav2", "expected_upload.json"),
        ("vizwiz", "expected_upload.json"),
        ("mmvet", "expected_upload.json"),
        ("mmbench", "expected_sheet.json"),
    ],
)
def test_a_server_gets_what_bunny_would_send(name: str, file: str) -> None:
    found = scored(name)
    assert found["submission"] == expected(f"{name}/{file}")
    assert found["scores"] is None, "only the server scores"


def test_a_broken_line_is_counted_not_silently_lost() -> None:
    assert scored("vqav2")["num_broken_lines"] == 1


def test_every_benchmark_has_a_case_and_says_what_it_needs() -> None:
    found = benchmarks.all_benchmarks()
    assert {name for name, each in found.items() if "bunny" in each.conventions} == set(CASES)
    assert all(each.reference and each.obtained_from and each.conventions for each in found.values())


def test_answers_of_another_benchmark_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one benchmark, split and version"):
        score_answers("pope", at(CASES["mmvet"][0]), at("pope"), "bunny")
    with pytest.raises(DataError, match="every label needs one question and one answer"):
        score_answers("pope", Location.parse(str(_first_line(tmp_path, CASES["pope"][0]))), at("pope"), "bunny")
    with pytest.raises(DataError, match="has no question"):
        score_answers("mme", at(CASES["pope"][0]), at(CASES["mme"][1]), "bunny")


def _first_line(folder: Path, answers: str) -> Path:
    file = folder / "answers.jsonl"
    file.write_text((ORACLE / answers).read_text().splitlines()[0])
    return file


def test_two_answers_to_one_question_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "twice.jsonl"
    file.write_text('{"question_id": 1, "text": "yes"}\n{"question_id": 1, "text": "no"}\n')
    with pytest.raises(DataError, match="two answers, 'yes' and 'no'"):
        score_answers("pope", Location.parse(str(file)), at("pope"), "bunny")


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "no answers"), ('{"question_id": 1}\n', "line 1: no id"), ("[1]\n", "expected an object"), ("{}\n", "no id")],
)
def test_an_answers_file_that_cannot_be_used_is_a_named_error(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text(content)
    with pytest.raises(DataError, match=message):
        score_answers("mmvet", Location.parse(str(file)), Location.parse(str(file)), "bunny")


def test_an_answer_may_hold_any_character_and_a_file_must_be_utf_8(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    texts = ["a\u2028b", "c\x85d", "\x1ce", "北京"]
    rows = [json.dumps({"question_id": n, "text": text}, ensure_ascii=False) for n, text in enumerate(texts)]
    file.write_bytes("\ufeff".encode() + "\r\n".join(rows).encode())
    found = score_answers("mmvet", Location.parse(str(file)), Location.parse(str(file)), "bunny")
    assert list(found["submission"].values()) == texts
    file.write_bytes(b'{"question_id": 1, "text": "caf\xe9"}')
    with pytest.raises(DataError, match="not UTF-8 text: byte 31 is 0xe9"):
        score_answers("mmvet", Location.parse(str(file)), Location.parse(str(file)), "bunny")


def test_files_that_are_missing_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "mme"
    shutil.copytree(ORACLE / CASES["mme"][1] / "OCR", folder / "unknown_task")
    with pytest.raises(DataError, match="no MME subtask folder"):
        score_answers("mme", at(CASES["mme"][0]), Location.parse(str(folder)), "bunny")
    with pytest.raises(DataError, match=r"no file called problems\.json"):
        score_answers("scienceqa", at(CASES["scienceqa"][0]), at("pope"), "bunny")


def test_names_that_do_not_exist_are_refused_with_the_valid_ones() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'mmmu'.*valid: .*cmmmu, "):
        benchmarks.benchmark_named("mmmuu")
    with pytest.raises(ConfigError, match="valid: bunny"):
        score_answers("mme", at(CASES["mme"][0]), at(CASES["mme"][1]), "theirs")


def test_the_command_writes_scores_and_prints_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "scores.json"
    answers, reference = (str(ORACLE / path) for path in CASES["mme"])
    arguments = ["--benchmark", "mme", "--answers", answers, "--reference", reference, "--out", str(out)]
    assert main(arguments) == 0
    assert json.loads(out.read_text())["scores"] == approx(expected("mme/expected.json"))
    assert "158 of 158 answered" in capsys.readouterr().out
    assert main([*arguments[:-1], str(out), "--convention", "theirs"]) == 1
    assert capsys.readouterr().err.startswith("error: mme has no convention 'theirs'")
