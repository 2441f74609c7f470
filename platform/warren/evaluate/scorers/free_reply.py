"""Reading free replies as MMMU's and CMMMU's scripts do: what follows an indicator word, and every number."""

import re
from collections.abc import Iterable, Sequence

Value = str | float

_TRIVIAL = (":", ",", ".", "!", "?", ";", "'")


def key_ends(sentences: Sequence[str], indicators: Sequence[str]) -> list[str]:
    """Return, of each sentence, the shortest end that follows an indicator; an equals sign counts in the last one."""
    ends = []
    for number, sentence in enumerate(sentences):
        known = (*indicators, "=") if number == len(sentences) - 1 else indicators
        shortest = ""
        for indicator in known:
            if indicator in sentence:
                end = sentence.split(indicator)[-1].strip()
                if not shortest or len(end) < len(shortest):  # an empty end wins, and loses to the next one
                    shortest = end
        if shortest and shortest not in _TRIVIAL:
            ends.append(shortest)
    return ends


def numbers(text: str, patterns: Sequence[re.Pattern[str]]) -> list[str]:
    """Return every number that the patterns find."""
    return [number for pattern in patterns for number in pattern.findall(text)]


def as_number(text: str) -> float | None:
    """Return a number rounded to two decimals, thousands separated by commas; None where the text is none."""
    try:
        return round(float(text.replace(",", "")), 2)
    except ValueError:
        return None


def is_right(values: Iterable[Value], accepted: Sequence[Value]) -> bool:
    """Tell whether a value contains an accepted text or equals an accepted number."""
    for value in values:
        if isinstance(value, str):
            if any(isinstance(one, str) and one in value for one in accepted):
                return True
        elif value in accepted:
            return True
    return False
