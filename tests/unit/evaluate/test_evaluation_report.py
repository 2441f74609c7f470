"""Scores, intervals and the report."""

import json
from typing import Any

import pytest

from factories import make_image
from warren.config import EvaluateConfig
from warren.errors import QuarantineError
from warren.evaluate.accuracy import exact_match, score
from warren.evaluate.contamination_split import ContaminationSplit
from warren.evaluate.evaluation_page import choose_examples, evaluation_page
from warren.evaluate.evaluation_report import Evaluation, render
from warren.evaluate.identity import Identity
from warren.evaluate.report_page import render_html


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [("Yes.", "yes", True), (" dark  blue ", "Dark blue", True), ("yes it is", "yes", False), ("", "no", False)],
)
def test_exact_match(answer: str, truth: str, right: bool) -> None:
    assert exact_match(answer, truth) is right


def test_the_interval_is_wilsons() -> None:
    measured = score([True] * 8 + [False] * 2, ["yes"] * 6 + ["no"] * 4)
    assert (measured.value, measured.majority) == (0.8, 0.6)
    assert (measured.low, measured.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert score([], []).num_samples == 0


def identity(**options: Any) -> Identity:
    return Identity.of(EvaluateConfig(dataset="test@v1", **options), "m", "d")


def test_the_report_has_the_score_and_every_answer() -> None:
    evaluation = Evaluation("r", 5, identity(), score([True], ["yes"]), {"yes": [1, 1.0]})
    assert "r at step 5, exact_match on test@v1: 100.00%" in evaluation.summary()
    assert "| yes | 1 | 100.0% | 20.7% to 100.0% |" in render(evaluation)
    assert Evaluation.from_json(json.loads(json.dumps(evaluation.to_json()))) == evaluation


def test_the_report_of_choices_tells_what_lots_would_reach_and_shows_the_commonest_answers() -> None:
    truths = {str(n): [1 + (n == 70), 0.5] for n in range(80)}
    found = score([True, False], ["1", "2"])
    evaluation = Evaluation("r", 5, identity(metric="choice", limit_samples=2), found, truths, chance=0.1)
    assert "choice on test@v1 (limit_samples=2)" in evaluation.summary()
    assert "by lot: 10.00%" in evaluation.summary()
    text = render(evaluation)
    assert "| 70 | 2 | 50.0% |" in text
    assert "30 rarer answers" in text


def test_what_could_not_be_asked_is_reported_apart_and_has_a_ceiling() -> None:
    found = score([True] * 97, ["yes"] * 97)
    evaluation = Evaluation("r", 5, identity(), found, {}, num_quarantined=3, reasons={"no image": 2, "a|b\nc": 1})
    assert evaluation.value == 1.0
    assert "97 samples; 3 more could not be asked" in evaluation.summary()
    assert "| no image | 2 |" in render(evaluation)
    assert "| a\\|b c | 1 |" in render(evaluation)
    evaluation.check_quarantined(0.03, "folder")
    with pytest.raises(QuarantineError, match=r"3 of 100 .* 2.00%; .*\(2 samples\): no image. All .* in folder"):
        evaluation.check_quarantined(0.02, "folder")


def test_scores_with_and_without_contaminated_samples_have_intervals() -> None:
    rows: list[dict[str, Any]] = [{"key": f"k{n}", "correct": n % 4 == 0, "truth": "yes"} for n in range(80)]
    assert ContaminationSplit.of(rows, {"pairs@v1": None}) is None
    split = ContaminationSplit.of(rows, {"b@v1": {"k0", "k4", "k5", "gone"}, "a@v1": set(), "c@v1": None})
    assert split is not None
    assert split.contaminated == score([True, True, False], ["yes"] * 3)
    assert split.clean == score([n % 4 == 0 for n in range(80) if n not in (0, 4, 5)], ["yes"] * 77)
    overall = score([row["correct"] for row in rows], ["yes"] * 80)
    evaluation = Evaluation("r", 5, identity(), overall, {}, contamination=split)
    assert Evaluation.from_json(json.loads(json.dumps(evaluation.to_json()))) == evaluation
    predictions = [row | {"question": "?", "answer": "yes"} for row in rows]
    text = render(evaluation)
    assert "looked for in a@v1, b@v1. It was not looked for in c@v1." in " ".join(text.split("\n"))
    assert "3 samples were found there and trained on: 66.67% (95 % interval 20.77% to 93.85%)" in text
    assert "The score without them: 23.38% (95 % interval 15.33% to 33.95%), 77 samples." in text
    assert "The score without them: 23.38%" in evaluation_page(evaluation, predictions, []).facts["contamination"]
    nothing = ContaminationSplit.of(rows, {"b@v1": set()})
    assert nothing is not None
    assert nothing.describe()[-1] == "No sample of it was trained on there."


def test_the_page_has_an_interval_for_every_answer_and_examples_with_their_images() -> None:
    predictions = [
        {
            "key": f"k{n}",
            "question": "<image>\nred?",
            "answer": "no",
            "truth": "no" if n % 3 else "yes",
            "correct": n % 3 > 0,
        }
        for n in range(90)
    ]
    found = score([row["correct"] for row in predictions], [str(row["truth"]) for row in predictions])  # type: ignore[misc]
    evaluation = Evaluation("r", 5, identity(), found, {}, num_quarantined=2, reasons={"no <image>": 2})
    chosen = choose_examples(predictions)
    assert [sum(bool(predictions[place]["correct"]) is kind for place in chosen) for kind in (True, False)] == [20, 20]
    images = [(predictions[place], (make_image(), b"broken")) for place in chosen]
    page = evaluation_page(evaluation, predictions, images)
    lines = {line.name: line for line in page.lines}
    assert list(lines) == ["exact_match", "true answer no", "true answer yes"]
    assert (lines["exact_match"].low, lines["exact_match"].high) == (found.low, found.high)
    html = render_html(page).decode()
    assert html.count("data:image/jpeg") == 40
    assert html.count("<b>k") == 40
    assert "could not be asked: no &lt;image&gt;" in html
    assert evaluation.summary() in html.replace("&#34;", '"')
