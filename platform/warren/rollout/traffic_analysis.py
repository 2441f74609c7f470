"""Statistical tests of a candidate's traffic against the serving release's in the same step.

The traffic is looked at when the candidate has answered `min_requests`, twice as many, four times as many, and so on.
Each look spends a part of the probability of a false alarm, and all looks of all steps together spend the policy's.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from warren.config.rollout import RolloutPolicy
from warren.rollout.answer_checks import SHORT_CHARS
from warren.rollout.state_machine import Judgement

_MAX_RECORDS = 5000  # of one version and step
_NUM_TESTS = 8


@dataclass(frozen=True)
class AnswerRecord:
    """What the ingress measured of one request.

    Attributes:
        version: The release that answered, or failed to.
        is_failed: Whether it failed by the engine's fault.
        first_token_s: None if there was none.
        gap_s: Mean time between two tokens; None for answers of one chunk.
        tokens_per_s: Of the whole answer; None for answers of one chunk.
        num_chars: Length of the answer.
        is_empty: Whether it has no visible text.
        is_repetitive: See `is_repetitive`.
        is_foreign: Whether it is in another language than its question.
        is_resumed: Whether an engine died while it answered. Another one finished the answer, so the client saw no
            failure, but the release did fail.
    """

    version: str
    is_failed: bool = False
    first_token_s: float | None = None
    gap_s: float | None = None
    tokens_per_s: float | None = None
    num_chars: int = 0
    is_empty: bool = False
    is_repetitive: bool = False
    is_foreign: bool = False
    is_resumed: bool = False


class StepJudge:
    """Collects the records of one step and judges the candidate by them.

    Args:
        policy: Limits and the probability of a false alarm.
        baseline: Records of the serving release from before, for steps in which it has no traffic of its own.
    """

    def __init__(self, policy: RolloutPolicy, baseline: Sequence[AnswerRecord] = ()) -> None:
        self._policy = policy
        self._baseline = baseline
        self._records: dict[str, deque[AnswerRecord]] = {}
        self._looks = 0
        self._verdict: Judgement | None = None

    def add(self, records: Iterable[AnswerRecord]) -> None:
        """Add what was measured."""
        for record in records:
            self._records.setdefault(record.version, deque(maxlen=_MAX_RECORDS)).append(record)

    def records(self, version: str | None) -> Sequence[AnswerRecord]:
        """Return the records of a version."""
        return tuple(self._records.get(version or "", ()))

    def verdict(self, candidate: str | None, stable: str | None) -> Judgement | None:
        """Return the judgement of the last look; None before the first."""
        new, old = self.records(candidate), self.records(stable)
        # A full deque drops its oldest records, so its length no longer says how much traffic there was.
        is_due = len(new) >= self._policy.min_requests * 2**self._looks and len(new) < _MAX_RECORDS
        if is_due and (self._verdict is None or self._verdict.is_good):
            self._looks += 1
            # Each look k of a step spends a part 6 / (pi k)^2 of the step's level; over all k these parts sum to 1.
            level = self._policy.false_alarm / len(self._policy.steps) * 6 / (math.pi * self._looks) ** 2
            self._verdict = judge_traffic(new, old, self._baseline, self._policy, level)
        return self._verdict


def judge_traffic(
    candidate: Sequence[AnswerRecord],
    stable: Sequence[AnswerRecord],
    baseline: Sequence[AnswerRecord],
    policy: RolloutPolicy,
    level: float,
) -> Judgement:
    """Judge a candidate at one look.

    Args:
        candidate: Its records in this step.
        stable: The serving release's in this step.
        baseline: The serving release's from before: failures and bad answers are compared with them where the step
            has too few of its own. Times are not, because they depend on the load.
        level: Probability of a false alarm, of all tests together.
    """
    # Bonferroni: the tests below share the level.
    level /= _NUM_TESTS
    # A step that sends the candidate nearly all traffic leaves the serving release too few answers to compare with.
    compared = stable if len(stable) >= policy.min_requests else [*baseline, *stable]
    shares: tuple[tuple[str, float, Callable[[AnswerRecord], bool]], ...] = (
        (
            "failed, or were cut by an engine that died",
            policy.max_extra_errors,
            lambda one: one.is_failed or one.is_resumed,
        ),
        ("were empty", policy.max_extra_bad_answers, lambda one: one.is_empty),
        ("repeated themselves", policy.max_extra_bad_answers, lambda one: one.is_repetitive),
        ("were in another language than their question", policy.max_extra_bad_answers, lambda one: one.is_foreign),
    )
    for what, most, is_faulty in shares:
        new, old = sum(map(is_faulty, candidate)), sum(map(is_faulty, compared))
        if share_is_higher((new, len(candidate)), (old, len(compared)), most, level):
            text = f"{new} of {len(candidate)} answers {what} ({old} of {len(compared)} of the serving release's)"
            return Judgement(False, text)
    # Half, because an answer may be longer or shorter: these are two tests.
    if reason := _other_length(_lengths(candidate), _lengths(stable), policy, level / 2):
        return Judgement(False, reason)
    for what, unit, reading, is_speed in _TIMES:
        slower = _slower(reading(candidate), reading(stable), policy, level, is_speed)
        if slower:
            return Judgement(
                False, f"{what}: a median of {slower[0]:.3g} {unit}, the serving release has {slower[1]:.3g}"
            )
    return Judgement(True)


def share_is_higher(new: tuple[int, int], old: tuple[int, int], most: float, level: float) -> bool:
    """Tell whether a share of faults is higher by more than `most`: Fisher's exact test, one-sided.

    Args:
        new: Number of faults, and of what there is altogether.
        old: The same of what it is compared with. If there is nothing, `most` itself is the limit.
    """
    from scipy.stats import binom, hypergeom  # here, because who only records answers does not judge them

    faults, total = new
    if old[1] == 0:
        # Nothing to compare with, as with a first release: a binomial test against the limit, but at least 0.1 %.
        return bool(binom.sf(faults - 1, total, max(most, 1e-3)) < level)
    if faults / total - old[0] / old[1] <= most:
        return False
    # Given the number of faults of both, the candidate's follow a hypergeometric distribution if both are alike.
    return bool(hypergeom.sf(faults - 1, total + old[1], faults + old[0], total) < level)


def median_bounds(values: Sequence[float], level: float) -> tuple[float, float] | None:
    """Return bounds of the median, each wrong with probability `level` at most; None for too few values.

    They are order statistics, so they hold for any distribution.
    """
    from scipy.stats import binom

    # The number of values below the median is binomial with p = 1/2.
    rank = int(binom.ppf(level, len(values), 0.5)) if values else 0
    if rank < 1:
        return None
    ordered = sorted(values)
    return ordered[rank - 1], ordered[len(ordered) - rank]


def _slower(
    new: Sequence[float], old: Sequence[float], policy: RolloutPolicy, level: float, is_speed: bool
) -> tuple[float, float] | None:
    """Return both medians if the new one is worse by more than the policy allows."""
    if min(len(new), len(old)) < policy.min_requests:
        return None
    bounds, others = median_bounds(new, level), median_bounds(old, level)
    if bounds is None or others is None:
        return None
    # The bounds that favour the candidate: it is refused only if even these are too far apart.
    ratio = others[0] / bounds[1] if is_speed else bounds[0] / others[1]
    return (sorted(new)[len(new) // 2], sorted(old)[len(old) // 2]) if ratio > policy.max_slowdown else None


def _other_length(new: Sequence[int], old: Sequence[int], policy: RolloutPolicy, level: float) -> str:
    """Return why the answers' lengths refuse a candidate; empty if they do not."""
    if min(len(new), len(old)) < policy.min_requests:
        return ""
    bounds, others = median_bounds(new, level), median_bounds(old, level)
    if bounds is None or others is None:
        return ""
    is_longer = bounds[0] > policy.max_length_ratio * max(SHORT_CHARS, others[1])
    is_shorter = others[0] > policy.max_length_ratio * max(SHORT_CHARS, bounds[1])
    if not is_longer and not is_shorter:
        return ""
    here, there = sorted(new)[len(new) // 2], sorted(old)[len(old) // 2]
    return f"length of an answer: a median of {here} characters, the serving release has {there}"


def _lengths(records: Sequence[AnswerRecord]) -> list[int]:
    return [one.num_chars for one in records if not one.is_failed and not one.is_empty]


def _values(name: str) -> Callable[[Sequence[AnswerRecord]], list[float]]:
    return lambda records: [value for one in records if (value := getattr(one, name)) is not None]


_TIMES = (
    ("time to first token", "s", _values("first_token_s"), False),
    ("gap between tokens", "s", _values("gap_s"), False),
    ("speed", "tokens/s", _values("tokens_per_s"), True),
)
