"""The accuracy of a model on a dataset: the share of right answers, with its 95 % interval."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from warren.evaluate.statistics import wilson


@dataclass(frozen=True)
class Score:
    """A share of right answers with its 95 % Wilson interval.

    Attributes:
        majority: What always giving the most frequent answer would score.
    """

    value: float
    low: float
    high: float
    num_samples: int
    majority: float


def exact_match(answer: str, truth: str) -> bool:
    """Tell whether two answers are equal but for case, outer white space and a final full stop."""
    return _normal(answer) == _normal(truth)


def score(correct: Sequence[bool], truths: Sequence[str]) -> Score:
    """Return the accuracy of a list of answers; an empty list scores zero."""
    n = len(correct)
    if n == 0:
        return Score(0.0, 0.0, 0.0, 0, 0.0)
    right = sum(correct)
    interval = wilson(right, n)
    majority = Counter(map(_normal, truths)).most_common(1)[0][1] / n
    return Score(right / n, interval.low, interval.high, n, majority)


def _normal(text: str) -> str:
    return re.sub(r"\s+", " ", text.strip().rstrip(".").lower())
