"""The gate: each condition holds exactly where it should, says why, and a person may override it."""

from dataclasses import replace
from typing import Any

import pytest

from warren.config import GateConfig, SanityPrompt
from warren.errors import GateError
from warren.release import (
    AnswerShares,
    CandidateFacts,
    Decontamination,
    EngineProbe,
    GateOverride,
    GateVerdict,
    ProbedAnswer,
    StableComparison,
    TrainingDataset,
    check_gate,
    judge,
)

CLEAN = Decontamination({"test@v1": "e"})
FACTS = CandidateFacts(
    metric="exact_match",
    score=0.8,
    score_low=0.75,
    num_samples=100,
    model_bytes=1000,
    datasets=(TrainingDataset("train@v1", decontamination=CLEAN),),
    measured_on=("test@v1", "e"),
)
WORSE = StableComparison("v1", 100, -0.1, -0.15, -0.05, 0.001)
EVEN = StableComparison("v1", 100, -0.01, -0.04, 0.02, 0.4)
UNKNOWN = StableComparison("v1", problem="v1 is stable, but was not measured by exact_match on test@v1")
PROBE = EngineProbe(
    first_token_s=0.25,
    token_s=0.02,
    memory_bytes=4000,
    hardware="2 CPU of x86_64",
    answers=(
        ProbedAnswer("2+2?", " It is four."),
        ProbedAnswer("why?", " \n"),
        ProbedAnswer("how?", "la la la", is_repetitive=True),
    ),
)


def verdict(facts: dict[str, Any], **gate: Any) -> GateVerdict:
    prompts = tuple(SanityPrompt(text=text, matches=matches) for text, matches in gate.pop("sanity_prompts", ()))
    return judge(GateConfig(**{"min_score": 0.0, "sanity_prompts": prompts, **gate}), replace(FACTS, **facts))


CASES: list[tuple[dict[str, Any], dict[str, Any], bool, str]] = [
    ({}, {"min_score": 0.8}, True, "exact_match is 0.8000 on 100 samples, the gate asks for 0.8000"),
    ({"score": 0.7999}, {"min_score": 0.8}, False, "exact_match is 0.7999"),
    ({"score": 1.0, "num_samples": 0}, {}, False, "on 0 samples"),
    ({}, {"min_score_low": 0.75}, True, "lower end of its 95 % interval is 0.7500, the gate asks for 0.7500"),
    ({}, {"min_score_low": 0.76}, False, "lower end of its 95 % interval is 0.7500"),
    ({}, {"no_regression": True}, True, "no stable release to compare with yet"),
    ({"stable": EVEN}, {"no_regression": True}, True, "-0.0100 against v1 on 100 questions"),
    ({"stable": WORSE}, {"no_regression": True}, False, "p = 0.001): worse"),
    ({"stable": replace(WORSE, difference=0.1)}, {"no_regression": True}, True, "no regression shown"),
    ({"stable": UNKNOWN}, {"no_regression": True}, False, "v1 is stable, but was not measured"),
    ({}, {"max_regression": 0.01}, True, "no stable release to compare with yet"),
    ({"stable": EVEN}, {"max_regression": 0.04}, True, "asks for an interval above -0.0400"),
    ({"stable": EVEN}, {"max_regression": 0.03}, False, "asks for an interval above -0.0300"),
    ({"stable": UNKNOWN}, {"max_regression": 0.03}, False, "was not measured"),
    ({"answers": AnswerShares(0.1, 0.5, "yes")}, {"max_empty_fraction": 0.1}, True, "10.00% of the answers are empty"),
    ({"answers": AnswerShares(0.1, 0.5, "yes")}, {"max_empty_fraction": 0.09}, False, "the gate allows 9.00%"),
    ({"answers": AnswerShares(0.1, 0.5, "yes")}, {"max_same_answer_fraction": 0.5}, True, "of the answers are 'yes'"),
    ({"answers": AnswerShares(0.1, 0.5, "yes")}, {"max_same_answer_fraction": 0.4}, False, "50.00% of the answers are"),
    ({"answers": AnswerShares(problem="answers are missing")}, {"max_empty_fraction": 1.0}, False, "are missing"),
    ({"engine": PROBE}, {"max_first_token_s": 0.3}, True, "takes 0.25 s on 2 CPU of x86_64, the gate allows 0.3 s"),
    ({"engine": PROBE}, {"max_first_token_s": 0.2}, False, "the first token takes 0.25 s on 2 CPU of x86_64"),
    ({"engine": PROBE}, {"max_token_s": 0.02}, True, "every further token takes 0.02 s"),
    ({"engine": PROBE}, {"max_token_s": 0.019}, False, "the gate allows 0.019 s"),
    ({"engine": PROBE}, {"max_memory_bytes": 4000}, True, "the engine takes 4,000 bytes on 2 CPU"),
    ({"engine": PROBE}, {"max_memory_bytes": 3999}, False, "the gate allows 3,999 bytes"),
    ({}, {"max_token_s": 9.0}, False, "no engine of it was asked"),
    ({"engine": EngineProbe(problem="it does not load")}, {"max_memory_bytes": 10**9}, False, "it does not load"),
    ({"engine": EngineProbe(problem="it does not load")}, {"sanity_prompts": [("2+2?", None)]}, False, "does not load"),
    ({"engine": PROBE}, {"sanity_prompts": [("2+2?", "FOUR|5")]}, True, "all 1 sanity prompts"),
    ({"engine": PROBE}, {"sanity_prompts": [("2+2?", "5")]}, False, "'It is four.', does not match '5'"),
    ({"engine": PROBE}, {"sanity_prompts": [("2+2?", None), ("why?", None)]}, False, "answer to 'why?' is empty"),
    ({"engine": PROBE}, {"sanity_prompts": [("how?", None)]}, False, "'la la la', repeats itself"),
    ({"engine": PROBE}, {"sanity_prompts": [("never asked", None)]}, False, "answer to 'never asked' is empty"),
    ({}, {"max_model_bytes": 1000}, True, "the model has 1,000 bytes, the gate allows 1,000"),
    ({}, {"max_model_bytes": 999}, False, "the model has 1,000 bytes, the gate allows 999"),
    ({}, {"contamination_certificate": True}, True, "all 1 training datasets are free of images of test@v1"),
    (
        {"datasets": (*FACTS.datasets, TrainingDataset("captions@v1"))},
        {"contamination_certificate": True},
        False,
        "captions@v1 has no certificate of being free of images of test@v1; make a selection",
    ),
    ({"measured_on": ("test@v1", "new")}, {"contamination_certificate": True}, False, "train@v1 has no certificate"),
    ({"datasets": ()}, {"contamination_certificate": True}, False, "not recorded what the model was trained on"),
]


@pytest.mark.parametrize(("facts", "gate", "passes", "reason"), CASES)
def test_a_condition_holds_or_says_why_not(
    facts: dict[str, Any], gate: dict[str, Any], passes: bool, reason: str
) -> None:
    judged = verdict(facts, **gate)
    assert judged.passed is passes
    assert any(reason in check.reason for check in judged.checks), judged.lines()
    if passes:
        check_gate(judged)
    else:
        with pytest.raises(GateError, match=r"not released; .*--override-gate") as refused:
            check_gate(judged)
        assert reason in str(refused.value)


def test_only_what_the_recipe_sets_is_checked_and_every_reason_is_kept() -> None:
    assert [check.name for check in verdict({}).checks] == ["min_score"]
    judged = verdict({"stable": WORSE}, min_score=0.9, max_model_bytes=10, no_regression=True)
    assert [check.passed for check in judged.checks] == [False, False, False]
    assert judged.stable == "v1"
    assert judged.failures.count(";") == 2


def test_an_override_is_recorded_where_it_was_needed_and_only_there() -> None:
    override = GateOverride("ada", "a demonstration")
    assert judge(GateConfig(min_score=0.5), FACTS, override).override is None
    judged = judge(GateConfig(min_score=0.9), FACTS, override)
    assert (judged.passed, judged.accepted, judged.override) == (False, True, override)
    check_gate(judged)
    assert judged.lines()[-1] == "released all the same by ada: a demonstration"
    assert GateVerdict.from_json(judged.to_json()) == judged
