"""The gate: what a checkpoint must reach before it is released, as the recipe's `release.gate` declares it."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from warren.config import GateConfig
from warren.errors import GateError
from warren.release.lineage import TrainingDataset
from warren.release.verdict import GateCheck, GateOverride, GateVerdict

SIGNIFICANT = 0.05
_SHOWN_DATASETS, _SHOWN_CHARS = 3, 40


@dataclass(frozen=True)
class StableComparison:
    """The candidate beside the stable release, on the same questions.

    Attributes:
        version: Of the stable release.
        num_questions: Both answered.
        difference: The candidate's score minus the stable release's.
        low: Lower end of its 95 % interval.
        high: Upper end of it.
        p_value: Of McNemar's test, that the two do not differ.
        problem: Why they could not be compared; empty where they were.
    """

    version: str
    num_questions: int = 0
    difference: float = 0.0
    low: float = 0.0
    high: float = 0.0
    p_value: float = 1.0
    problem: str = ""


@dataclass(frozen=True)
class AnswerShares:
    """What a degenerate model shows in its answers to the evaluation.

    Attributes:
        empty: Share of the answers that are empty.
        commonest: Share of the most frequent answer.
        commonest_answer: That answer.
        problem: Why the answers could not be read; empty where they were.
    """

    empty: float = 0.0
    commonest: float = 0.0
    commonest_answer: str = ""
    problem: str = ""


@dataclass(frozen=True)
class ProbedAnswer:
    """An engine's answer to a sanity prompt."""

    prompt: str
    text: str
    is_repetitive: bool = False


@dataclass(frozen=True)
class EngineProbe:
    """What an engine of the candidate did, alone and with the resources of a replica.

    Attributes:
        first_token_s: Median time from a question about an image to the first token.
        token_s: Median time of every further token.
        memory_bytes: Memory of its process, or on a GPU what it takes of the GPU's.
        hardware: What it ran on.
        answers: To the sanity prompts.
        problem: Why no engine could be asked; empty where one was.
    """

    first_token_s: float = 0.0
    token_s: float = 0.0
    memory_bytes: int = 0
    hardware: str = ""
    answers: tuple[ProbedAnswer, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class CandidateFacts:
    """What the gate judges.

    Attributes:
        metric: Of the score.
        score: As it was measured.
        score_low: Lower end of its 95 % interval.
        num_samples: What it rests on.
        model_bytes: Size of the model's files.
        datasets: What the model was trained on, in every stage.
        measured_on: Reference and digest of the evaluation's dataset.
        stable: Beside the stable release; None: there is none, or no comparison is asked for.
        answers: What the model answered; None: nothing is asked about that.
        engine: What an engine of it did; None: none was asked.
    """

    metric: str
    score: float
    score_low: float
    num_samples: int
    model_bytes: int
    datasets: tuple[TrainingDataset, ...]
    measured_on: tuple[str, str]
    stable: StableComparison | None = None
    answers: AnswerShares | None = None
    engine: EngineProbe | None = None


def judge(gate: GateConfig, facts: CandidateFacts, override: GateOverride | None = None) -> GateVerdict:
    """Return the gate's verdict on a checkpoint, with a reason for each condition that the gate sets.

    Args:
        override: Recorded where a condition does not hold.
    """
    verdict = GateVerdict(tuple(_checks(gate, facts)), facts.stable.version if facts.stable else None)
    return verdict if verdict.passed or override is None else GateVerdict(verdict.checks, verdict.stable, override)


def check_gate(verdict: GateVerdict) -> None:
    """Refuse a checkpoint that the gate does not let through.

    Raises:
        GateError: The message has the reason of every check that failed.
    """
    if not verdict.accepted:
        raise GateError(
            f"{verdict.failures}: not released; train further, change release.gate, or release it all the same with "
            "--override-gate WHY --who NAME"
        )


def _checks(gate: GateConfig, facts: CandidateFacts) -> Iterator[GateCheck]:
    measured = f"{facts.metric} is {facts.score:.4f} on {facts.num_samples} samples"
    passes = facts.num_samples > 0 and facts.score >= gate.min_score
    yield GateCheck("min_score", passes, f"{measured}, the gate asks for {gate.min_score:.4f}")
    if gate.min_score_low is not None:
        passes = facts.num_samples > 0 and facts.score_low >= gate.min_score_low
        reason = (
            f"the lower end of its 95 % interval is {facts.score_low:.4f}, the gate asks for {gate.min_score_low:.4f}"
        )
        yield GateCheck("min_score_low", passes, reason)
    yield from _regression_checks(gate, facts.stable)
    yield from _answer_checks(gate, facts.answers or AnswerShares())
    if gate.max_model_bytes is not None:
        passes = facts.model_bytes <= gate.max_model_bytes
        reason = f"the model has {facts.model_bytes:,} bytes, the gate allows {gate.max_model_bytes:,}"
        yield GateCheck("max_model_bytes", passes, reason)
    if gate.asks_engine:
        yield from _engine_checks(gate, facts.engine or EngineProbe(problem="no engine of it was asked"))
    if gate.contamination_certificate:
        yield _certificate_check(facts)


def _engine_checks(gate: GateConfig, engine: EngineProbe) -> Iterator[GateCheck]:
    limits: tuple[tuple[str, float | None, float, str, str], ...] = (
        ("max_first_token_s", gate.max_first_token_s, engine.first_token_s, "the first token takes", ".4g} s"),
        ("max_token_s", gate.max_token_s, engine.token_s, "every further token takes", ".4g} s"),
        ("max_memory_bytes", gate.max_memory_bytes, engine.memory_bytes, "the engine takes", ",} bytes"),
    )
    for name, limit, measured, what, unit in limits:
        if limit is not None:
            shown, allowed = (("{:" + unit).format(value) for value in (measured, limit))
            reason = engine.problem or f"{what} {shown} on {engine.hardware}, the gate allows {allowed}"
            yield GateCheck(name, not engine.problem and measured <= limit, reason)
    if gate.sanity_prompts:
        faults = [] if engine.problem else list(_bad_answers(gate, {one.prompt: one for one in engine.answers}))
        right = f"all {len(gate.sanity_prompts)} sanity prompts are answered as they should be"
        yield GateCheck(
            "sanity_prompts", not engine.problem and not faults, engine.problem or "; ".join(faults) or right
        )


def _bad_answers(gate: GateConfig, answers: Mapping[str, ProbedAnswer]) -> Iterator[str]:
    for prompt in gate.sanity_prompts:
        answer = answers.get(prompt.text, ProbedAnswer(prompt.text, ""))
        question, shown = repr(prompt.text[:_SHOWN_CHARS]), repr(answer.text.strip()[:_SHOWN_CHARS])
        if not answer.text.strip():
            yield f"the answer to {question} is empty"
        elif answer.is_repetitive:
            yield f"the answer to {question}, {shown}, repeats itself"
        elif prompt.matches is not None and not re.search(prompt.matches, answer.text, re.IGNORECASE):
            yield f"the answer to {question}, {shown}, does not match {prompt.matches!r}"


def _regression_checks(gate: GateConfig, stable: StableComparison | None) -> Iterator[GateCheck]:
    names = [name for name in ("no_regression", "max_regression") if getattr(gate, name) not in (False, None)]
    if stable is None or stable.problem:
        reason = stable.problem if stable else "there is no stable release to compare with yet"
        yield from (GateCheck(name, stable is None, reason) for name in names)
        return
    compared = (
        f"{stable.difference:+.4f} against {stable.version} on {stable.num_questions} questions "
        f"(95 % interval {stable.low:+.4f} to {stable.high:+.4f}, p = {stable.p_value:.3f})"
    )
    if gate.no_regression:
        worse = stable.difference < 0 and stable.p_value < SIGNIFICANT
        yield GateCheck("no_regression", not worse, f"{compared}: {'worse' if worse else 'no regression shown'}")
    if gate.max_regression is not None:
        passes = stable.low >= -gate.max_regression
        yield GateCheck(
            "max_regression", passes, f"{compared}; the gate asks for an interval above {-gate.max_regression:+.4f}"
        )


def _answer_checks(gate: GateConfig, answers: AnswerShares) -> Iterator[GateCheck]:
    shown = repr(answers.commonest_answer[:_SHOWN_CHARS])
    shares = {
        "max_empty_fraction": (answers.empty, "are empty"),
        "max_same_answer_fraction": (answers.commonest, f"are {shown}"),
    }
    for name, (share, what) in shares.items():
        limit = getattr(gate, name)
        if limit is not None:
            reason = answers.problem or f"{share:.2%} of the answers {what}, the gate allows {limit:.2%}"
            yield GateCheck(name, not answers.problem and share <= limit, reason)


def _certificate_check(facts: CandidateFacts) -> GateCheck:
    """Ask every training dataset for a certificate that covers the evaluation's dataset."""
    reference, digest = facts.measured_on
    lacking = [
        dataset.reference
        for dataset in facts.datasets
        if dataset.decontamination is None or not dataset.decontamination.covers(reference, digest)
    ]
    name = "contamination_certificate"
    if not facts.datasets:
        return GateCheck(name, False, "it is not recorded what the model was trained on")
    if lacking:
        shown = ", ".join(lacking[:_SHOWN_DATASETS]) + (" and more" if len(lacking) > _SHOWN_DATASETS else "")
        return GateCheck(
            name,
            False,
            f"{shown} has no certificate of being free of images of {reference}; make a selection with a "
            "`decontaminate` step (jobs/curate.py) and train on that",
        )
    return GateCheck(name, True, f"all {len(facts.datasets)} training datasets are free of images of {reference}")
