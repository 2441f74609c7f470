"""Scores, intervals and the report."""

import pytest

from warren.evaluate.report import Evaluation, render
from warren.evaluate.scoring import exact_match, score


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [("Yes.", "yes", True), (" dark  blue ", "Dark blue", True), ("yes it is", "yes", False), ("", "no", False)],
)
def test_exact_match(answer: str, truth: str, right: bool) -> None:
    assert exact_match(answer, truth) is right


def test_the_interval_is_wilsons() -> None:
    measured = score([True] * 8 + [False] * 2, ["yes"] * 6 + ["no"] * 4)
    assert (measured.value, measured.majority) == (0.8, 0.6)
    assert (measured.low, measured.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert score([], []).num_samples == 0


def test_the_report_has_the_score_and_every_answer() -> None:
    evaluation = Evaluation("r", 5, "test@v1", "exact_match", score([True], ["yes"]).__dict__, {"yes": [1, 1.0]})
    assert "exact_match 100.00%" in evaluation.summary()
    assert "| yes | 1 | 100.0% |" in render(evaluation)


def test_the_report_of_choices_tells_what_lots_would_reach_and_shows_the_commonest_answers() -> None:
    truths = {str(n): [1 + (n == 70), 0.5] for n in range(80)}
    found = score([True, False], ["1", "2"]).__dict__
    evaluation = Evaluation("r", 5, "test@v1", "choice", found, truths, num_choices=10)
    assert "one of 10 by lot: 10.00%" in evaluation.summary()
    text = render(evaluation)
    assert "| 70 | 2 | 50.0% |" in text
    assert "30 rarer answers" in text
