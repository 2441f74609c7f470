"""The VQA challenge's rules: its normaliser of answers, and soft accuracy over ten human answers.

Source: the evaluation of VQA v2 (https://visualqa.org/evaluation.html) as EvalAI runs it; LLaVA and Bunny normalise so.
"""

import re
from collections.abc import Callable, Sequence

_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"(?<=\d)(\,)+(?=\d)")
_FULL_STOP = re.compile(r"\.(?!\d)")
_MAX_FULL_STOPS = 32  # the published code passes a flag where the number of replacements belongs
_CONTRACTIONS_TEXT = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't it'd
it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't somebody'll
somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's they'd they'll
they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll
who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""
# Words with two apostrophes are mended where one of them is missing.
_DOUBLE_TEXT = """
couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've
there'd've they'd've we'd've who'd've wouldn't've y'all'll y'all'd've you'd've
"""
_QUIRKS = {  # as published
    "Im": "I'm",
    "Ive": "I've",
    "Id've": "I'd've",
    "I'dve": "I'd've",
    "somebody'd": "somebodyd",
    "ow's'at": "'ow's'at",
    "'ows'at": "'ow's'at",
    "'ow'sat": "'ow's'at",
}


def _without(word: str, position: int) -> str:
    return word[:position] + word[position + 1 :]


_CONTRACTIONS = {word.replace("'", ""): word for word in _CONTRACTIONS_TEXT.split()}
for _word in _DOUBLE_TEXT.split():
    for _position in (i for i, char in enumerate(_word) if char == "'"):
        _CONTRACTIONS[_without(_word, _position)] = _word
_CONTRACTIONS |= _QUIRKS


def normalise(answer: str) -> str:
    """Return an answer as the VQA challenge compares it: lower case, digits for numbers, no articles or punctuation."""
    return normalise_words(answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip())


def normalise_words(answer: str) -> str:
    """Return an answer as the first VQA challenge compared it: commas and question marks are not removed first."""
    text = answer.replace("\n", " ").replace("\t", " ").strip()
    text = without_punctuation(text)
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def soft_accuracies(human_answers: Sequence[str], normal: Callable[[str], str] = normalise) -> dict[str, float]:
    """Return what each normalised answer scores against the human answers.

    An answer scores `min(1, n / 3)`, n people having given it, averaged over leaving each person out in turn.
    """
    normalised = [normal(answer) for answer in human_answers]
    scores = {}
    for answer in dict.fromkeys(normalised):
        left_out = [
            min(1.0, float(sum(other == answer for j, other in enumerate(normalised) if j != i)) / 3)
            for i in range(len(normalised))
        ]
        scores[answer] = sum(left_out) / len(left_out)
    return scores


def without_punctuation(text: str, comma_in_number: re.Pattern[str] = _COMMA_IN_NUMBER) -> str:
    """Remove punctuation, or replace it by a space where it stands between two words; decimal points stay.

    Args:
        text: An answer.
        comma_in_number: Where it matches, all punctuation is removed.
    """
    result = text
    for char in _PUNCTUATION:
        stands_at_a_space = f"{char} " in text or f" {char}" in text
        result = result.replace(char, "" if stands_at_a_space or comma_in_number.search(text) else " ")
    return _FULL_STOP.sub("", result, count=_MAX_FULL_STOPS)
