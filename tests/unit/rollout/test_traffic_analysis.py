"""The judge of a candidate's traffic and answers: bad releases are found, good ones are left alone in noise."""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from warren.config import RolloutPolicy
from warren.rollout.answer_checks import BUILT_IN, Reply, SanityQuestion, is_repetitive, judge_answers
from warren.rollout.questions import read_questions
from warren.rollout.traffic_analysis import AnswerRecord, StepJudge, judge_traffic
from warren.storage import Location

POLICY = RolloutPolicy()
Change = Callable[[AnswerRecord, random.Random], AnswerRecord]


def record(version: str, chance: random.Random, load: float) -> AnswerRecord:
    """Return an answer as a busy machine gives it: long tails, and now and then a failure or an empty answer."""
    first_s = chance.lognormvariate(-1.5, 0.6) * load
    gap_s = chance.lognormvariate(-4, 0.4) * load
    return AnswerRecord(
        version,
        is_failed=chance.random() < 0.003,
        first_token_s=first_s * (20 if chance.random() < 0.02 else 1),
        gap_s=gap_s,
        tokens_per_s=1 / gap_s,
        num_chars=chance.randrange(1, 400),
        is_empty=chance.random() < 0.01,
        is_repetitive=chance.random() < 0.01,
    )


def roll(seed: int, change: Change = lambda one, _: one, per_step: int = 400) -> str:
    """Go through all steps of a rollout; returns why it was undone, or nothing."""
    chance = random.Random(seed)
    baseline = [record("old", chance, 1.0) for _ in range(300)]
    for share in POLICY.steps:
        judge = StepJudge(POLICY, baseline)
        load = chance.uniform(0.7, 2.0)  # the machine is busier in some steps
        num_asked, verdict = 0, None
        while num_asked < per_step or verdict is None:
            version = "new" if chance.random() < share else "old"
            one = record(version, chance, load)
            judge.add([change(one, chance) if version == "new" else one])
            num_asked += 1
            if num_asked % 20 == 0:  # the controller looks now and then
                verdict = judge.verdict("new", "old")
            if verdict and not verdict.is_good:
                return verdict.reason
    return ""


def test_of_twenty_good_releases_at_most_one_is_undone() -> None:
    undone = [reason for seed in range(40) if (reason := roll(seed))]
    assert len(undone) <= 2, undone


def slower(one: AnswerRecord, _: random.Random) -> AnswerRecord:
    assert one.first_token_s
    assert one.gap_s
    assert one.tokens_per_s
    return replace(one, first_token_s=10 * one.first_token_s, gap_s=10 * one.gap_s, tokens_per_s=one.tokens_per_s / 10)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (slower, "time to first token"),
        (lambda one, _: replace(one, is_failed=True), "failed"),
        (lambda one, _: replace(one, is_empty=True), "were empty"),
        (lambda one, _: replace(one, is_repetitive=True), "repeated themselves"),
        (lambda one, _: replace(one, is_foreign=True), "in another language"),
        (lambda one, chance: replace(one, is_resumed=chance.random() < 0.05), "cut by an engine that died"),
        (lambda one, _: replace(one, num_chars=5 * one.num_chars), "length of an answer"),
        (lambda one, _: replace(one, num_chars=1), "length of an answer"),
        (lambda one, chance: replace(one, is_failed=chance.random() < 0.05), "failed"),
        (lambda one, _: replace(one, first_token_s=None, gap_s=5 * one.gap_s), "gap between tokens"),
    ],
)
def test_a_bad_release_is_undone(change: Change, reason: str) -> None:
    for seed in range(5):
        assert reason in roll(seed, change, per_step=2000)


def test_a_little_slower_or_an_error_that_both_have_is_no_reason() -> None:
    def both_fail(one: AnswerRecord, _: random.Random) -> AnswerRecord:
        return replace(one, is_failed=True)

    failing = [both_fail(record("x", random.Random(1), 1.0), random.Random(1)) for _ in range(50)]
    assert judge_traffic(failing, failing, (), POLICY, 0.01).is_good
    assert roll(1, lambda one, _: replace(one, first_token_s=1.3 * (one.first_token_s or 0))) == ""


def test_before_enough_requests_there_is_no_verdict() -> None:
    judge = StepJudge(POLICY)
    judge.add([AnswerRecord("new", is_failed=True)] * (POLICY.min_requests - 1))
    assert judge.verdict("new", "old") is None
    judge.add([AnswerRecord("new", is_failed=True)])
    verdict = judge.verdict("new", "old")
    assert verdict
    assert not verdict.is_good, "nothing to compare with, but all of them failed"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("yes", False),
        ("", False),
        ("the the the the the the the the the the", True),
        ("A red circle is on the left of a blue square, which is above a green triangle.", False),
        ("I see the cat. " + "and a dog " * 20, True),
        ("ab" * 30, True),
        ("no no no", False),
        ("日本語" * 12, True),
        ("".join(random.Random(1).choices("abcdefgh ", k=300)), False),
        ("1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12", False),
        ("loop with a long body, that comes again and again, as it is: " * 12, True),
    ],
)
def test_loops_are_told_from_prose(text: str, expected: bool) -> None:
    assert is_repetitive(text) is expected


def answers(questions: tuple[SanityQuestion, ...], *texts: str | None) -> list[Reply]:
    return [Reply(texts[number % len(texts)]) for number in range(len(questions))]


def test_a_release_is_judged_by_its_answers() -> None:
    fine, loop = answers(BUILT_IN, "fine"), answers(BUILT_IN, "la la " * 20)

    def verdict(new: list[Reply], old: list[Reply] | None, questions: tuple[SanityQuestion, ...] = BUILT_IN) -> str:
        judged = judge_answers(questions, new, old, POLICY)
        return "" if judged.is_good else judged.reason

    assert verdict(fine, fine) == verdict(fine, loop) == verdict(fine, None) == verdict(loop, loop) == ""
    assert verdict(loop, fine) == verdict(loop, fine)
    for bad in (loop, answers(BUILT_IN, None), answers(BUILT_IN, " \n")):
        assert verdict(bad, fine) == "4 of 4 answers are empty or repeat themselves (0 of the serving release's)"
        assert verdict(bad, None).startswith("4 of 4")
    assert verdict(answers(BUILT_IN, "fine", None), fine) == "", "two of four may be chance"

    truths = tuple(SanityQuestion(f"colour {n}?", expected="red") for n in range(40))
    right, wrong = answers(truths, "Red."), answers(truths, "blue")
    assert verdict(right, right, truths) == verdict(right, wrong, truths) == verdict(wrong, wrong, truths) == ""
    assert verdict(wrong, right, truths) == "40 of 40 answers are wrong (0 of the serving release's)"
    assert verdict([*wrong[:2], *right[2:]], right, truths) == "", "two of forty may be chance"


def judged(questions: tuple[SanityQuestion, ...], new: list[Reply], old: list[Reply], **policy: float) -> str:
    verdict = judge_answers(questions, new, old, POLICY.model_copy(update=policy))
    return "" if verdict.is_good else verdict.reason


def test_answers_in_another_language_or_of_another_length_are_refused() -> None:
    english, german = "There is a red circle on the left.", "Auf dem Bild ist ein roter Kreis."
    fine = answers(BUILT_IN, english)
    foreign = "4 of 4 answers are in another language than their question (0 of the serving release's)"
    assert judged(BUILT_IN, answers(BUILT_IN, german), fine) == foreign
    assert judged(BUILT_IN, fine, answers(BUILT_IN, german)) == "", "the serving release was the foreign one"
    assert judged(BUILT_IN, answers(BUILT_IN, german, english), fine) == "", "two of four may be chance"

    questions = tuple(SanityQuestion(f"what is it? {n}") for n in range(12))
    short = answers(questions, "a circle on the left side")
    long = answers(questions, "I see a circle. It is red, as far as one can say. " * 2)
    assert "12 of 12 answers are more than 3 times longer" in judged(questions, long, short)
    assert "12 of 12 answers are more than 3 times shorter" in judged(questions, short, long)
    assert judged(questions, long, short, max_length_ratio=9.0) == ""
    assert judged(questions, long, answers(questions, "")) == "", "an empty answer has no length"
    assert judged(questions, answers(questions, "No, there is none at all."), answers(questions, "no")) == ""


def test_agreement_with_the_serving_release_is_judged_only_if_that_is_asked_for() -> None:
    new, old = answers(BUILT_IN, "a cat"), answers(BUILT_IN, "A cat.", "a dog")
    assert judged(BUILT_IN, new, old) == judged(BUILT_IN, new, old, min_agreement=0.5) == ""
    assert judged(BUILT_IN, new, old, min_agreement=0.6) == "2 of 4 answers agree with the serving release's"


def test_three_points_on_four_hundred_questions_are_found() -> None:
    truths = tuple(SanityQuestion(f"colour {n}?", expected="red") for n in range(400))
    old = [Reply("red" if n % 10 else "blue") for n in range(400)]
    three_points_worse = [Reply("green") if n % 33 == 1 else reply for n, reply in enumerate(old)]
    noisy = [Reply("green" if n in (7, 9) else "red" if n in (0, 10, 20) else str(old[n].text)) for n in range(400)]
    assert "answers are wrong (40 of the serving release's)" in judged(truths, three_points_worse, old)
    assert judged(truths, noisy, old) == ""


def test_questions_come_from_the_release(tmp_path: Path) -> None:
    folder = Location.parse(str(tmp_path))
    assert read_questions(folder) == BUILT_IN
    image = b"an encoded image"
    (tmp_path / "a.png").write_bytes(image)
    cases = [
        {"question": "what?", "image": "a.png", "expected": "red"},
        {"prompt": "why?", "expected": "so"},
        {"question": "gone?", "image": "gone.png"},
        {"question": "outside?", "image": "../a.png"},
        {"ids": [1, 2]},
        {"turns": [{"role": "user", "text": "<image>\nwho?"}], "images": ["a.png"]},
        {"turns": [{"role": "user", "text": "two"}, {"role": "user", "text": "turns"}], "images": []},
    ]
    for value in (cases, {"cases": cases}):
        (tmp_path / "golden.json").write_text(json.dumps(value))
        assert read_questions(folder) == (
            SanityQuestion("what?", image, "red"),
            SanityQuestion("why?", None, "so"),
            SanityQuestion("who?", image),
        )
    (tmp_path / "golden.json").write_text(
        json.dumps([{"question": "how many?", "max_tokens": most} for most in (3, 0, 65, "3")])
    )
    assert [question.max_tokens for question in read_questions(folder)] == [3, 64, 64, 64]
    for text in ("[]", "{", '{"other": 1}'):
        (tmp_path / "golden.json").write_text(text)
        assert read_questions(folder) == BUILT_IN
