"""The language of a short text: by its script, and by function words where languages share the Latin script.

It answers one question: is an answer in another language than its question? A text that is too short or mixed has no
language here, because a wrong guess would turn a good release back.
"""

import re
import unicodedata
from collections import Counter
from functools import lru_cache

_MIN_LETTERS = 12
_MIN_WORDS = 2  # function words of one language, and of no other language as many
_MAX_CHARS = 2000
_LETTERS = re.compile(r"[^\W\d_]+")
_IDEOGRAPHS = {"CJK": "chinese", "HIRAGANA": "japanese", "KATAKANA": "japanese", "HANGUL": "korean"}

_FUNCTION_WORDS = {
    "english": "the of and is are was there this that with what how which it they you has have on at many does",
    "german": "der die das und ist sind war ein eine nicht mit von auf wie viele welche es sie ich dem den zu",
    "french": "le la les des et est sont une dans avec ce cette qui que quel quelle il elle du pas combien sur",
    "spanish": "el los las y es son una en con qué cuál que del por como hay esta este muy se cuántos un",
    "portuguese": "o os as e é são uma em com que qual do da dos não por como há esta este muito se quantos um",
    "italian": "il lo gli e è sono una in con che quale del della non per come questo questa molto si quanti un",
    "dutch": "de het en is zijn een niet met van op hoe veel welke er dat dit ze ik wat was in",
}
_LANGUAGES_OF: dict[str, list[str]] = {}
for _language, _words in _FUNCTION_WORDS.items():
    for _word in _words.split():
        _LANGUAGES_OF.setdefault(_word, []).append(_language)


def language_of(text: str) -> str | None:
    """Return a text's language, or its script where that is all that can be said; None if it cannot be told.

    Latin texts are told apart only among the languages with function words above.
    """
    words = _LETTERS.findall(text[:_MAX_CHARS].lower())
    scripts = Counter(_script(letter) for word in words for letter in word)
    if not scripts or scripts.total() < _MIN_LETTERS * _share_needed(scripts):
        return None
    script, count = scripts.most_common(1)[0]
    # A mixed text, such as a sentence about a foreign word.
    if count * 2 <= scripts.total():
        return None
    if any(_IDEOGRAPHS.get(each) == "japanese" for each in scripts) and script in _IDEOGRAPHS:
        return "japanese"  # it mixes kana and Chinese characters
    return _latin_language(words) if script == "LATIN" else _IDEOGRAPHS.get(script, script.lower())


def is_other_language(question: str, answer: str) -> bool:
    """Tell whether an answer is certainly in another language than its question."""
    asked, answered = language_of(question), language_of(answer)
    return asked is not None and answered is not None and asked != answered


def _latin_language(words: list[str]) -> str | None:
    hits = Counter(language for word in words for language in _LANGUAGES_OF.get(word, ()))
    likeliest = hits.most_common(2)
    if not likeliest or likeliest[0][1] < _MIN_WORDS:
        return None
    # Languages share function words (`in`, `la`), so a tie decides nothing.
    return None if len(likeliest) > 1 and likeliest[1][1] == likeliest[0][1] else likeliest[0][0]


def _share_needed(scripts: Counter[str]) -> float:
    """Return how much of the usual length is enough: a character of Chinese, Japanese or Korean says more."""
    return 0.3 if scripts.most_common(1)[0][0] in _IDEOGRAPHS else 1.0


@lru_cache(maxsize=4096)
def _script(letter: str) -> str:
    return unicodedata.name(letter, "UNKNOWN").split()[0]
