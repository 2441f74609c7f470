"""Scorers of short texts: exact, contains, choice, relaxed. Each returns the points of an answer, between 0 and 1."""

import re
from collections.abc import Mapping, Sequence

_ALLOWED_ERROR = 0.05  # relative, ChartQA (arXiv 2203.10244, section 4)
_SAID = re.compile(r"\b(?:answer|option|choice)(?: is|:)\s*\(?([A-Z])\b\)?", re.IGNORECASE)
_LETTER_FIRST = re.compile(r"\(?([A-Z])(?:\)|[.:]|$)(?:\s|$)")


def plain(text: str) -> str:
    """Return a text in lower case with single spaces, without outer white space and a final full stop."""
    return re.sub(r"\s+", " ", text.strip().rstrip(".").lower())


def exact(answer: str, truths: Sequence[str]) -> float:
    """Tell whether an answer is one of the truths, but for case, white space and a final full stop."""
    return float(plain(answer) in map(plain, truths))


def contains(answer: str, truths: Sequence[str]) -> float:
    """Tell whether an answer contains one of the truths as whole words."""
    text = plain(answer)
    return float(any(re.search(rf"(?<!\w){re.escape(plain(truth))}(?!\w)", text) for truth in truths if plain(truth)))


def relaxed(answer: str, truths: Sequence[str]) -> float:
    """Tell whether a number is within 5 % of a truth, or another text equals one."""
    return float(any(_is_close(answer, truth) for truth in truths))


def chosen_letter(answer: str, options: Mapping[str, str]) -> str | None:
    """Return the option that an answer names, None where it names none or is ambiguous.

    Read are, in this order: a letter alone or first, as in `B`, `b`, `(B)`, `B.` and `B: blue`; `the answer is B`; the
    text of exactly one option.

    Args:
        answer: What the model wrote.
        options: Texts by letter.
    """
    text = answer.strip()
    if text.upper() in options:
        return text.upper()
    first = _LETTER_FIRST.match(text)
    if first and first[1] in options:
        return str(first[1])
    # An answer that says several letters chooses none, rather than the first.
    letters = {letter.upper() for letter in _SAID.findall(text)} & options.keys()
    if len(letters) == 1:
        return str(letters.pop())
    same = [letter for letter, option in options.items() if plain(option) == plain(text)]
    return same[0] if len(same) == 1 else None


def _is_close(answer: str, truth: str) -> bool:
    value, target = _as_number(answer), _as_number(truth)
    if value is None or not target:  # a truth of zero allows no relative error
        return plain(answer) == plain(truth)
    return abs(value - target) / abs(target) <= _ALLOWED_ERROR


def _as_number(text: str) -> float | None:
    """Return a number; percent is a hundredth, as in ChartQA's script."""
    text = text.strip()
    try:
        return float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None
