"""Rules of VLMEvalKit without a judge model, its `exact_matching`; tests compare them with what the package gives."""

import re
from collections.abc import Mapping

from warren.evaluate.scorers.vqa import without_punctuation

NAME = "vlmevalkit"
_REFUSED = "Z"  # what the package calls an answer that chooses no option
_NO_ANSWER = "Failed to obtain answer via API"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_PUNCTUATION = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_LAST_WORDS = 4
_LONGER = 2  # an answer more than so many times as long as all options together names none by its text


def yes_or_no(answer: str) -> str | None:
    """Return `Yes` or `No` where the answer holds exactly one of the two words; None otherwise."""
    words = without_punctuation(answer.lower(), _COMMA_IN_NUMBER).split()
    answers = [word for word in ("yes", "no") if word in words]
    return answers[0].capitalize() if len(answers) == 1 else None


def chosen_option(answer: str, options: Mapping[str, str]) -> str | None:
    """Return the letter that an answer chooses, `Z` where it refuses to, None where it cannot be read.

    A letter must be the only one of the options' that is a word, and be among the last four words. Otherwise the text
    of exactly one option must be a part of the answer.
    """
    letter = None if _NO_ANSWER in answer else _letter(answer, options)
    return letter or _option_in(answer.lower(), options)


def _letter(answer: str, options: Mapping[str, str]) -> str | None:
    if any(refusal in answer for refusal in _REFUSALS):
        return _REFUSED
    words = answer.translate(_PUNCTUATION).split()
    named = [letter for letter in options if letter in words]
    if not named:
        return _REFUSED if _REFUSED in words else None
    is_late = len(named) == 1 and words.index(named[0]) >= len(words) - _LAST_WORDS
    return named[0] if is_late else None


def _option_in(answer: str, options: Mapping[str, str]) -> str | None:
    if len(answer) > _LONGER * sum(map(len, options.values())):
        return None
    named = [letter for letter, option in options.items() if option.lower() in answer]
    return named[0] if len(named) == 1 else None
