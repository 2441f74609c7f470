"""Checks of answers: of a single answer, and of a candidate's answers to the sanity questions.

The latter are compared with the serving release's answers to the same questions.
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from warren.config.rollout import RolloutPolicy
from warren.rollout.languages import is_other_language
from warren.rollout.questions import BUILT_IN, SanityQuestion
from warren.rollout.state_machine import Judgement

__all__ = ["BUILT_IN", "Reply", "SanityQuestion", "is_repetitive", "judge_answers"]

SHORT_CHARS = 16
"""Answers up to this length count as equally long: `no` and `No, there is none.` do not differ in length."""

_SHORTEST_LOOP = 24  # characters; shorter answers may well repeat a word
_LOOP_REPEATS = 4
_LONG = 200  # characters from which compression tells loops from prose
_LOOPS_COMPRESS_TO = 0.2  # prose of that length stays above 0.4
# All four built-in questions answered worse is refused, three are not; see `sign_test`.
_DEGENERATE_LEVEL = 0.07
_WORDS = re.compile(r"\w+")


@dataclass(frozen=True)
class Reply:
    """What a release answered to a question; None if it failed."""

    text: str | None

    @property
    def is_degenerate(self) -> bool:
        """Whether there is no answer, or it is empty or repeats itself."""
        return self.text is None or not self.text.strip() or is_repetitive(self.text)

    def is_wrong(self, question: SanityQuestion) -> bool:
        """Whether it differs from the known answer, in more than case and punctuation."""
        return question.expected is not None and _words(self.text) != _words(question.expected)

    def is_foreign(self, question: SanityQuestion) -> bool:
        """Whether it is in another language than its question."""
        return is_other_language(question.text, self.text or "")

    def is_far_longer(self, other: "Reply", ratio: float) -> bool:
        """Whether it is more than `ratio` times as long as another one."""
        return len(self.text or "") > ratio * max(SHORT_CHARS, len(other.text or ""))


def is_repetitive(text: str) -> bool:
    """Tell whether a text runs in a loop, by its second half's period or by how well it compresses."""
    data = text.strip().encode()
    if len(data) < _SHORTEST_LOOP:
        return False
    # A loop often begins after some sound sentences, so only the second half has to be one.
    tail = data[len(data) // 2 :] if len(data) >= 2 * _SHORTEST_LOOP else data
    if _period(tail) * _LOOP_REPEATS <= len(tail):
        return True
    # Catches loops whose repetitions differ a little, such as a counter that goes up.
    return len(data) >= _LONG and len(zlib.compress(data, 9)) < _LOOPS_COMPRESS_TO * len(data)


class _Pair(NamedTuple):
    """One question with both releases' answers."""

    question: SanityQuestion
    new: Reply
    old: Reply


def judge_answers(
    questions: Sequence[SanityQuestion],
    candidate: Sequence[Reply],
    stable: Sequence[Reply] | None,
    policy: RolloutPolicy,
) -> Judgement:
    """Judge a candidate by its answers, beside the serving release's to the same questions.

    Args:
        stable: None if nothing serves; then only a candidate that mostly answers nothing is refused.
        policy: How much worse it may be.
    """
    num_bad = sum(reply.is_degenerate for reply in candidate)
    if stable is None:
        is_bad = num_bad > len(questions) / 2
        return Judgement(not is_bad, f"{num_bad} of {len(questions)} answers are empty or repeat themselves")
    pairs = [_Pair(*each) for each in zip(questions, candidate, stable, strict=True)]
    # The first objection is the reason that people read, so the plainest check comes first.
    for check in (_degenerate, _foreign, _wrong, _of_other_length):
        if reason := check(pairs, policy):
            return Judgement(False, reason)
    agreeing = sum(_words(pair.new.text) == _words(pair.old.text) for pair in pairs)
    text = f"{agreeing} of {len(pairs)} answers agree with the serving release's"
    return Judgement(agreeing >= policy.min_agreement * len(pairs), text)


def _degenerate(pairs: Sequence[_Pair], policy: RolloutPolicy) -> str:
    faults = [(pair.new.is_degenerate, pair.old.is_degenerate) for pair in pairs]
    what = "are empty or repeat themselves"
    return _refusal(faults, what, policy.max_extra_bad_answers, max(_DEGENERATE_LEVEL, policy.false_alarm))


def _foreign(pairs: Sequence[_Pair], policy: RolloutPolicy) -> str:
    faults = [(pair.new.is_foreign(pair.question), pair.old.is_foreign(pair.question)) for pair in pairs]
    what = "are in another language than their question"
    return _refusal(faults, what, policy.max_extra_bad_answers, max(_DEGENERATE_LEVEL, policy.false_alarm))


def _wrong(pairs: Sequence[_Pair], policy: RolloutPolicy) -> str:
    known = [pair for pair in pairs if pair.question.expected]
    faults = [(pair.new.is_wrong(pair.question), pair.old.is_wrong(pair.question)) for pair in known]
    return _refusal(faults, "are wrong", policy.max_extra_wrong_answers, policy.false_alarm)


def _of_other_length(pairs: Sequence[_Pair], policy: RolloutPolicy) -> str:
    """Compare how many answers became far longer with how many became far shorter."""
    ratio = policy.max_length_ratio
    # Degenerate answers were judged before; their lengths mean nothing.
    answered = [pair for pair in pairs if not pair.new.is_degenerate and not pair.old.is_degenerate]
    longer = [pair.new.is_far_longer(pair.old, ratio) for pair in answered]
    shorter = [pair.old.is_far_longer(pair.new, ratio) for pair in answered]
    for what, here, there in (("longer", longer, shorter), ("shorter", shorter, longer)):
        faults = list(zip(here, there, strict=True))
        if is_worse(faults, policy.max_extra_bad_answers, policy.false_alarm):
            times = f"more than {ratio:g} times {what} than the serving release's"
            return f"{sum(here)} of {len(answered)} answers are {times}"
    return ""


def _refusal(faults: Sequence[tuple[bool, bool]], what: str, most: float, level: float) -> str:
    """Return why the candidate is refused; empty if it is not."""
    if not is_worse(faults, most, level):
        return ""
    new, old = (sum(column) for column in zip(*faults, strict=True))
    return f"{new} of {len(faults)} answers {what} ({old} of the serving release's)"


def is_worse(pairs: Sequence[tuple[bool, bool]], max_extra: float, level: float) -> bool:
    """Tell whether the first of each pair is faulty more often, by a margin and by the exact sign test."""
    # Questions that both answer well, or both badly, say nothing about which of the two is better.
    only_new, only_old = sum(new and not old for new, old in pairs), sum(old and not new for new, old in pairs)
    if not pairs or (only_new - only_old) / len(pairs) <= max_extra:
        return False
    return sign_test(only_new, only_new + only_old) < level


def sign_test(num_faults: int, num_different: int) -> float:
    """Return the probability of so many heads, or more, in so many tosses of a fair coin."""
    from scipy.stats import binom  # here, because who only records answers does not judge them

    return float(binom.sf(num_faults - 1, num_different, 0.5)) if num_different else 1.0


def _words(text: str | None) -> list[str]:
    return _WORDS.findall((text or "").lower())


def _period(data: bytes) -> int:
    """Return the length of the shortest piece of which `data` is repetitions, the last one perhaps cut off."""
    border = [0] * len(data)  # Knuth, Morris and Pratt's table of borders
    length = 0
    for index in range(1, len(data)):
        while length and data[index] != data[length]:
            length = border[length - 1]
        length += data[index] == data[length]
        border[index] = length
    return len(data) - border[-1]
