"""The convention `lmms-eval` gives what the package gives on the same answers.

tests/golden/lmms_eval_scores.json was made by the scoring functions of lmms-eval 0.7.3 itself, on the answers of
tests/oracle/scoring; MMBench's cases, which need truths and rotations, are in the file.
"""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_benchmark_questions import LETTER, PNG, SHORT, lines, make_mmmu, parquet, put
from test_benchmarks import CASES, ORACLE, approx, at

from warren.errors import ConfigError, DataError
from warren.evaluate.answer_file import AnswersOrigin, StoredAnswer, write_answers
from warren.evaluate.benchmark_questions import prompt_convention, questions
from warren.evaluate.benchmarks import all_benchmarks
from warren.evaluate.score_answers import measures_of, score_answers
from warren.evaluate.score_formatting import numbers
from warren.storage import Location

GOLDEN_FOLDER = Path(__file__).parents[2] / "golden"
GOLDEN = json.loads((GOLDEN_FOLDER / "lmms_eval_scores.json").read_text())
ELSEWHERE = {  # compared in test_llm_judge.py and test_boxes_and_captions.py
    name: value
    for file in ("judged_scores", "boxes_and_captions")
    for name, value in json.loads((GOLDEN_FOLDER / f"{file}.json").read_text()).items()
}


def location(path: Path) -> Location:
    return Location.parse(str(path))


def scored(name: str, reference: Location | None = None) -> dict[str, Any]:
    return score_answers(name, at(CASES[name][0]), reference or at(CASES[name][1]), "lmms-eval")


def decided(report: dict[str, Any]) -> dict[str, float]:
    return {key: float(row.get("right", row.get("score"))) for key, row in report["per_question"].items()}


def test_conventions_are_offered_where_they_were_compared() -> None:
    offered = {name for name, each in all_benchmarks().items() if "lmms-eval" in each.conventions}
    assert offered <= set(GOLDEN) | set(ELSEWHERE)
    with pytest.raises(ConfigError, match=r"no convention 'vlmevalkit'; valid: bunny, lmms-eval\. A convention"):
        score_answers("gqa", at(CASES["gqa"][0]), at(CASES["gqa"][1]), "vlmevalkit")


@pytest.mark.parametrize("name", ["mme", "pope", "gqa", "textvqa", "mmmu"])
def test_scores_equal_the_packages(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    report, golden = scored(name), GOLDEN[name]
    scores = {key: value for key, value in report["scores"].items() if key != "tasks"}
    assert scores == approx(golden["scores"])
    if name == "mme":
        assert report["scores"]["tasks"] == approx(golden["tasks"])
    assert decided(report) == approx({key: float(value) for key, value in golden["per_question"].items()})
    if name == "mmmu":
        assert report["random_fallback_ids"] == golden["drawn"]
    values = dict(numbers(report["scores"]))
    for measure in measures_of(report):
        assert measure.value == pytest.approx(values[measure.name], abs=5.1e-6 if name == "mmmu" else 1e-9)


def test_scienceqa_and_seed_equal_the_packages_where_every_question_has_an_answer(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no answer to \d+ of \d+ questions.*lmms-eval has no rule"):
        scored("scienceqa")
    put(tmp_path / "s/pid_splits.json", {"test": list(GOLDEN["scienceqa"]["per_question"])})
    shutil.copy(ORACLE / "scienceqa/problems.json", tmp_path / "s")
    report = scored("scienceqa", location(tmp_path / "s"))
    assert report["scores"] == approx(GOLDEN["scienceqa"]["scores"])
    assert decided(report) == GOLDEN["scienceqa"]["per_question"]
    data = json.loads((ORACLE / "seed/SEED-Bench.json").read_text())
    data["questions"] = [row for row in data["questions"] if row["question_id"] in GOLDEN["seed"]["per_question"]]
    put(tmp_path / "SEED-Bench.json", data)
    report = scored("seed", location(tmp_path / "SEED-Bench.json"))
    assert report["scores"] == approx(GOLDEN["seed"]["scores"])
    assert decided(report) == GOLDEN["seed"]["per_question"]


def make_mmbench(folder: Path, cases: list[dict[str, Any]]) -> None:
    columns = [*("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "l2-category"), "image"]
    with (folder / "mmbench_dev_en.tsv").open("w") as file:
        writer = csv.DictWriter(file, columns, delimiter="\t", extrasaction="ignore")
        writer.writeheader()
        writer.writerows({**case, "image": "aGk="} for case in cases)
    put(folder / "answers.jsonl", [{"question_id": case["index"], "text": case["prediction"]} for case in cases])


def test_mmbench_is_circular(tmp_path: Path) -> None:
    make_mmbench(tmp_path, GOLDEN["mmbench"]["cases"])
    report = score_answers("mmbench", location(tmp_path / "answers.jsonl"), location(tmp_path), "lmms-eval")
    assert report["scores"] == approx(GOLDEN["mmbench"]["scores"])
    assert report["num_questions"] == len(GOLDEN["mmbench"]["cases"])


def test_prompts_are_the_packages(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    make_mmbench(tmp_path / "a", GOLDEN["mmbench"]["prompt_docs"])
    asked = [question.text for question in questions("mmbench", location(tmp_path / "a"), "dev-en", "lmms-eval")]
    assert asked == GOLDEN["mmbench"]["prompts"]
    make_mmmu(tmp_path / "b")
    found = {question.key: question for question in questions("mmmu", location(tmp_path / "b"), None, "lmms-eval")}
    assert {key: question.text for key, question in found.items()} == GOLDEN["mmmu"]["prompts"]
    assert found["validation_Art_1"].prompt.startswith("<image>\n<image 1>")
    problems = json.loads((ORACLE / "scienceqa/problems.json").read_text())
    keys = [key for key in GOLDEN["scienceqa"]["prompts"] if key != "hint"]
    put(tmp_path / "c/problems.json", problems)
    put(tmp_path / "c/pid_splits.json", {"test": keys})
    for key in keys:
        put(tmp_path / "c/test" / key / "image.png", PNG)
    asked_of = {
        question.key: question.text for question in questions("scienceqa", location(tmp_path / "c"), None, "lmms-eval")
    }
    assert asked_of == {key: GOLDEN["scienceqa"]["prompts"][key] for key in keys}
    problems[keys[0]]["hint"] = "It is red."
    put(tmp_path / "c/problems.json", problems)
    first = next(questions("scienceqa", location(tmp_path / "c"), None, "lmms-eval"))
    assert first.text == GOLDEN["scienceqa"]["prompts"]["hint"]


def test_textvqa_and_seed_are_asked_as_the_package_asks(tmp_path: Path) -> None:
    shutil.copy(ORACLE / "textvqa/annotations.json", tmp_path)
    for row in json.loads((tmp_path / "annotations.json").read_text())["data"]:
        put(tmp_path / "train_images" / f"{row['image_id']}.jpg")
    first = next(questions("textvqa", location(tmp_path), None, "lmms-eval"))
    assert first.text == GOLDEN["textvqa"]["prompt"] == f"What is written on sign 0?{SHORT}"
    assert GOLDEN["seed"]["prompt"].endswith(LETTER)


def test_a_convention_without_own_prompts_says_whose_it_uses() -> None:
    assert prompt_convention("mme", "lmms-eval") == "bunny"
    assert prompt_convention("mmmu", "lmms-eval") == "lmms-eval"
    with pytest.raises(ConfigError, match="no convention 'vlmevalkit'"):
        prompt_convention("gqa", "vlmevalkit")


TABLES = {  # the published file's name, and the columns of images
    "mmstar": "mmstar.parquet",
    "ocrbench": "data/test-00000-of-00001.parquet",
    "chartqa": "data/test-00000-of-00001.parquet",
    "docvqa": "DocVQA/validation-00000-of-00006.parquet",
    "ai2d": "data/test-00000-of-00002.parquet",
    "realworldqa": "data/test-00000-of-00002.parquet",
    "blink": "Counting/val-00000-of-00001.parquet",
}


@pytest.mark.parametrize("name", TABLES)
def test_a_published_table_is_asked_and_scored_as_the_package_does(name: str, tmp_path: Path) -> None:
    cases = GOLDEN[name]["cases"]
    images: dict[str, list[bytes | None]] = {"image": [PNG] * len(cases)}
    if name == "blink":
        images = {"image_1": [PNG] * len(cases), "image_2": [PNG, None] * (len(cases) // 2) + [None] * (len(cases) % 2)}
    parquet(tmp_path / TABLES[name], [case["doc"] for case in cases], **images)
    asked = list(questions(name, location(tmp_path)))
    assert asked[0].text == GOLDEN[name]["prompt"]
    assert [len(question.images) for question in asked[:2]] == ([2, 1] if name == "blink" else [1, 1])
    stored = [StoredAnswer(q.key, q.text, case["prediction"]) for q, case in zip(asked, cases, strict=True)]
    write_answers(location(tmp_path / "answers.parquet"), stored, AnswersOrigin(name))
    report = score_answers(name, location(tmp_path / "answers.parquet"), location(tmp_path))
    assert report["convention"] == "lmms-eval"
    expected = {question.key: case["score"] for question, case in zip(asked, cases, strict=True)}
    assert {key: row["score"] for key, row in report["per_question"].items()} == approx(expected)
    if name == "mmstar":
        assert report["scores"] == approx(GOLDEN[name]["scores"])
    else:
        assert next(iter(report["scores"].values())) == pytest.approx(sum(expected.values()) / len(expected))
    values = dict(numbers(report["scores"]))
    assert {measure.name: measure.value for measure in measures_of(report)} == approx(values)


def test_validation_splits_of_vqav2_and_vizwiz_are_scored_here(tmp_path: Path) -> None:
    """The oracle's files of both are test splits without truths, so TextVQA's questions stand in for theirs."""
    rows = json.loads((ORACLE / "textvqa/annotations.json").read_text())["data"]
    answers = {row["question_id"]: row["text"] for row in lines(ORACLE / "textvqa/answers.jsonl")}
    people = {row["image_id"]: [{"answer": text} for text in row["answers"]] for row in rows}
    numbered = {n: row["image_id"] for n, row in enumerate(rows)}
    put(
        tmp_path / "v2_mscoco_val2014_annotations.json",
        {"annotations": [{"question_id": n, "image_id": n, "answers": people[key]} for n, key in numbered.items()]},
    )
    asked = [{"question_id": n, "image_id": n, "question": row["question"]} for n, row in enumerate(rows)]
    put(tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": asked})
    put(
        tmp_path / "val.json",
        [{"image": f"{key}.jpg", "question": "WHAT?", "answers": of} for key, of in people.items()],
    )
    for n, key in numbered.items():
        put(tmp_path / "val2014" / f"COCO_val2014_{n:012d}.jpg")
        put(tmp_path / "val" / f"{key}.jpg")
    for name, key_of in (("vqav2", dict), ("vizwiz", lambda of: {f"{key}.jpg": key for key in of.values()})):
        keys = {str(key): image for key, image in key_of(numbered).items()}
        found = list(questions(name, location(tmp_path), "val", "lmms-eval"))
        stored = [StoredAnswer(question.key, question.text, answers[keys[question.key]]) for question in found]
        write_answers(location(tmp_path / "answers.parquet"), stored, AnswersOrigin(name, "val"))
        report = score_answers(name, location(tmp_path / "answers.parquet"), location(tmp_path), "lmms-eval")
        scores = {keys[key]: row["score"] for key, row in report["per_question"].items()}
        assert scores == approx(GOLDEN[name]["per_question"])
    assert found[0].text == f"What?\nWhen the provided information is insufficient, respond with 'Unanswerable'.{SHORT}"
    put(tmp_path / "val.json", [{"image": "x.jpg", "question": "Q"}])
    with pytest.raises(DataError, match="only the server scores the test split"):
        score_answers("vizwiz", at("textvqa/answers.jsonl"), location(tmp_path / "val.json"), "lmms-eval")
