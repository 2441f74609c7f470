"""The convention `vlmevalkit` gives what the package gives on the same answers, without a judge model.

The expected numbers are those of ms-vlmeval 0.0.20, which packages VLMEvalKit, in tests/golden.
"""

import json
from pathlib import Path

from test_benchmarks import approx
from test_judging import GOLDEN, make_reference

from warren.evaluate.benchmark_scores import score_answers
from warren.evaluate.benchmarks import all_benchmarks
from warren.storage import Location

COMPARED = {"hallusionbench"}


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
