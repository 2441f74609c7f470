"""The convention `vlmevalkit` gives what the package gives on the same answers, without a judge model.

tests/golden/vlmevalkit_scores.json was made by the functions of ms-vlmeval 0.0.20, which packages VLMEvalKit, on the
answers of tests/oracle/scoring; HallusionBench's numbers are in judged_scores.json.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from test_benchmark_questions import PNG, parquet, put
from test_benchmarks import CASES, approx, at
from test_llm_judge import GOLDEN, make_reference
from test_lmms_eval import GOLDEN as LMMS_EVAL_GOLDEN
from test_lmms_eval import TABLES, make_mmbench

from warren.errors import DataError
from warren.evaluate.benchmark_questions import questions
from warren.evaluate.benchmarks import all_benchmarks
from warren.evaluate.score_answers import measures_of, score_answers
from warren.evaluate.score_formatting import numbers
from warren.evaluate.scorers.vlmevalkit import chosen_option, yes_or_no
from warren.storage import Location

VLMEVALKIT = json.loads((Path(__file__).parents[2] / "golden" / "vlmevalkit_scores.json").read_text())
COMPARED = {"hallusionbench", "mme", "pope", "seed", "mmbench", "ai2d", "blink"}


def test_the_convention_is_offered_where_it_was_compared() -> None:
    assert {name for name, each in all_benchmarks().items() if "vlmevalkit" in each.conventions} == COMPARED


def test_hallusionbench_reads_yes_and_no_and_gives_three_accuracies(tmp_path: Path) -> None:
    golden = GOLDEN["hallusionbench"]
    folder = make_reference("hallusionbench", tmp_path)
    report = score_answers(
        "hallusionbench", Location.parse(f"{folder}/model.jsonl"), Location.parse(str(folder)), "vlmevalkit"
    )
    assert {key: row["prediction"] for key, row in report["per_question"].items()} == golden["extracted"]
    scores = report["scores"]
    groups = {"Overall": {name: scores[name] for name in ("aAcc", "fAcc", "qAcc")}}
    groups |= scores["category"] | scores["subcategory"]
    assert groups == approx(golden["vlmevalkit"])
    assert {measure["name"]: measure["value"] for measure in report["measures"][:3]} == approx(groups["Overall"])
    assert all(measure["interval"] for measure in report["measures"])
    assert report["num_questions"] == len(golden["extracted"]), "questions without an image do not count"
    assert json.loads(json.dumps(report))["needs_judge"] is False


def scored(name: str, answers: Location | None = None, reference: Location | None = None) -> dict[str, Any]:
    report = score_answers(name, answers or at(CASES[name][0]), reference or at(CASES[name][1]), "vlmevalkit")
    values = dict(numbers(report["scores"]))
    assert {measure.name: measure.value for measure in measures_of(report)} == approx(values), (
        "every number is measured"
    )
    return report


def test_mme_is_the_sum_of_accuracies_with_yes_and_no_read_as_words() -> None:
    scores = scored("mme")["scores"]
    assert {**scores["tasks"], "perception": scores["perception"], "reasoning": scores["reasoning"]} == approx(
        VLMEVALKIT["mme"]
    )


def test_pope_has_f1_of_all_splits_together_and_of_each() -> None:
    scores = scored("pope")["scores"]
    splits = scores.pop("splits")
    assert {"Overall": scores, **splits} == approx(VLMEVALKIT["pope"])


def test_seed_bench_scores_questions_about_images_only(tmp_path: Path) -> None:
    golden = VLMEVALKIT["seed"]
    rows = [{"question_id": key, "text": text} for key, text in golden["answers"].items()]
    put(tmp_path / "a.jsonl", [*rows, {"question_id": "v0", "text": "A"}])
    report = scored("seed", Location.parse(f"{tmp_path}/a.jsonl"))
    assert {"Overall": report["scores"]["Overall"], **report["scores"]["category"]} == approx(golden["scores"])
    assert report["num_questions"] == len(rows)
    put(tmp_path / "a.jsonl", rows[1:])
    with pytest.raises(DataError, match=r"no answer to 1 of .*; vlmevalkit has no rule for missing answers"):
        scored("seed", Location.parse(f"{tmp_path}/a.jsonl"))


def test_mmbench_is_circular_and_plain(tmp_path: Path) -> None:
    make_mmbench(tmp_path, LMMS_EVAL_GOLDEN["mmbench"]["cases"])
    scores = scored("mmbench", Location.parse(f"{tmp_path}/answers.jsonl"), Location.parse(str(tmp_path)))["scores"]
    flat = {"Overall": scores["Overall"], **scores["category"], **scores["l2-category"]}
    assert flat == approx(VLMEVALKIT["mmbench"])
    assert scores["vanilla"] == pytest.approx(VLMEVALKIT["mmbench_vanilla"]), "the same questions without rotations"


@pytest.mark.parametrize("name", ["ai2d", "blink"])
def test_a_published_table_of_multiple_choice_is_scored_as_the_package_does(name: str, tmp_path: Path) -> None:
    cases = LMMS_EVAL_GOLDEN[name]["cases"]
    images: dict[str, list[bytes | None]] = {"image_1" if name == "blink" else "image": [PNG] * len(cases)}
    parquet(tmp_path / TABLES[name], [case["doc"] for case in cases], **images)
    keys = [question.key for question in questions(name, Location.parse(str(tmp_path)))]
    rows = [{"question_id": key, "text": case["prediction"]} for key, case in zip(keys, cases, strict=True)]
    put(tmp_path / "a.jsonl", rows)
    scores = scored(name, Location.parse(f"{tmp_path}/a.jsonl"), Location.parse(str(tmp_path)))["scores"]
    assert {"Overall": scores["Overall"], **scores.get("category", {})} == approx(VLMEVALKIT[name])


def test_single_answers_are_read_as_the_package_reads_them() -> None:
    options = {"A": "red fox", "B": "blue whale", "C": "green tea", "D": "12"}
    assert {text: chosen_option(text, options) for text in VLMEVALKIT["chosen"]} == VLMEVALKIT["chosen"]
    assert {text: yes_or_no(text) for text in VLMEVALKIT["yes_or_no"]} == VLMEVALKIT["yes_or_no"]
