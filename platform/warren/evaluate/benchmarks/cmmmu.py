"""CMMMU (arXiv 2401.11944): college-level questions in Chinese: choice, fill-in, true or false."""

import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from warren.evaluate.benchmarks.benchmark import Answer, Benchmark, Scores
from warren.evaluate.benchmarks.reading import by_key, find_file, read_json_lines, refuse_unknown
from warren.evaluate.scorers.free_reply import Value, as_number, is_right, key_ends, numbers
from warren.storage import Location

_CATEGORIES = {  # in the order of the published script, which decides what its random generator draws
    "艺术与设计": "Art & Design",
    "商业": "Business",
    "科学": "Science",
    "健康与医学": "Health & Medicine",
    "人文社会科学": "Humanities & Social Sciences",
    "技术与工程": "Technology & Engineering",
}
_SEED = 42
_CHOICE, _FILL_IN, _TRUE_FALSE = "选择", "填空", "判断"
_LETTERS = ("A", "B", "C", "D")
_TRUE, _FALSE = "对", "错"
_STRIPPED = (",", ".", "!", "?", ";", ":", "'")
_SENTENCE_END = re.compile(r"。|\n")
_FILL_IN_INDICATORS = (
    *("是", "为", "所以", "等于", "方案", "选择"),
    *("正确答案", "因此", "最后", "答案", "结果"),
)
_TRUE_FALSE_INDICATORS = ("是", "为", "所以", "判断", "陈述", "说法", "表达", "答案", "结果")
_AFFIRMING = ("正确", "对", "准确", "肯定", "对的")
_DENYING = ("不对", "错误", "不正确", "不准确", "不合适", "否定", "错的", "错")
_AMBIGUOUS = ("对错", "是否正确", "否正确", "或者", "是否", "正确性", "对不")
_NUMBERS = (
    re.compile(r"-?\d{1,3}(?:，\d{3})+"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+)(?![eE][+-]?\d+)(?![，\d])"),
)
_MORE_CHARS, _MORE_LETTERS = 20, 2  # by which a reply may exceed the truth and still be compared with it


def _bunny(answers: Sequence[Answer], reference: Location) -> Scores:
    """Score as CMMMU's and Bunny's scripts; what cannot be read draws, Python's generator seeded with 42."""
    questions = {str(row["id"]): row for row in read_json_lines(find_file(reference, "data.jsonl", "*.jsonl"))}
    given = by_key(answers)
    refuse_unknown(given, questions, "CMMMU")
    generator = random.Random(_SEED)
    per_question: dict[str, dict[str, Any]] = {}
    drawn: list[str] = []
    by_category: dict[str, list[str]] = {}
    for category, title in _CATEGORIES.items():
        by_category[title] = [key for key in given if questions[key]["category"] == category]
        for key in by_category[title]:
            per_question[key], was_drawn = _decide(given[key], questions[key], generator)
            drawn += [key] if was_drawn else []
    by_category["Overall"] = list(per_question)
    right = {key: bool(decided["correct"]) for key, decided in per_question.items()}
    lucky = {key: value and key not in drawn for key, value in right.items()}
    tables = (
        {title: _entry([of[key] for key in keys]) for title, keys in by_category.items()} for of in (right, lucky)
    )
    return Scores(len(questions), len(given), next(tables), per_question, drawn, next(tables))


def _decide(answer: Answer, question: Mapping[str, Any], generator: random.Random) -> tuple[dict[str, Any], bool]:
    """Return what a reply was taken for, and whether it was drawn.

    A line with `answer` in place of a reply holds what somebody already took out of the reply; it is compared as it is.
    """
    text, truth = answer.text, question["answer"]
    if _is_extracted(answer):
        right = is_right(_normal(text, truth), _normal(truth, truth)) if question["type"] == _FILL_IN else text == truth
        return {"predicted": text, "correct": right}, False
    if question["type"] == _CHOICE:
        options = {letter: question[f"option{number}"] for number, letter in enumerate(_LETTERS, 1)}
        letters, drawn = _letters(text, options), False
        if letters is None and text.split():
            letters, drawn = generator.choice(_LETTERS), True
        return {"predicted": letters, "correct": letters == truth}, drawn
    if question["type"] == _TRUE_FALSE:
        decided, drawn = _true_or_false(text), False
        if decided is None:
            decided, drawn = generator.choice((_TRUE, _FALSE)), True
        return {"predicted": decided, "correct": decided == truth}, drawn
    values = _fill_in_values(text, truth)
    return {"predicted": sorted(map(str, values)), "correct": is_right(values, _normal(truth, truth))}, False


def _is_extracted(answer: Answer) -> bool:
    return "answer" in answer.row and not {"text", "response"} & answer.row.keys()


def _letters(text: str, options: Mapping[str, str | None]) -> str | None:
    """Return the letters that a reply names most often, in order; None if it names no option at all."""
    for char in _STRIPPED:
        text = text.strip(char)
    for form in ({letter: f"({letter})" for letter in options}, {letter: letter for letter in options}, options):
        counts = Counter({letter: text.count(str(name)) for letter, name in form.items()})
        most = max(counts.values())
        if most:
            return "".join(letter for letter in options if counts[letter] == most)
    return None


def _true_or_false(text: str) -> str | None:
    """Return what most parts of a reply say; None for a tie."""
    parts = [part for part in set(_key_ends(text, _TRUE_FALSE_INDICATORS)) if not _has_any(part, _AMBIGUOUS)]
    affirming = sum(_has_any(part, _AFFIRMING) for part in parts)
    denying = sum(not _has_any(part, _AFFIRMING) and _has_any(part, _DENYING) for part in parts)
    if affirming == denying:
        return None
    return _TRUE if affirming > denying else _FALSE


def _has_any(text: str, words: Iterable[str]) -> bool:
    return any(word in text for word in words)


def _fill_in_values(text: str, truth: str) -> set[Value]:
    ends = _key_ends(text, _FILL_IN_INDICATORS)
    parts = [*ends, *(number for end in ends for number in numbers(end, _NUMBERS))]
    return {value for part in parts for value in _normal(part, truth)}


def _key_ends(text: str, indicators: Sequence[str]) -> list[str]:
    text = text.strip("。").strip()
    return key_ends(_SENTENCE_END.split(text), indicators) or [text]


def _normal(text: str, truth: str) -> list[Value]:
    text = text.strip()
    number = as_number(text)
    if number is not None:
        return [number]
    too_long = len(text) > len(truth) + _MORE_CHARS
    return [] if too_long or _num_letters(text) > _num_letters(truth) + _MORE_LETTERS else [text]


def _num_letters(text: str) -> int:
    return sum(char.isascii() and char.isalpha() for char in text)


def _entry(correct: Sequence[bool]) -> dict[str, Any]:
    share = sum(correct) / len(correct) if correct else 0.0
    return {"num": len(correct), "correct": sum(correct), "acc": share}


BENCHMARK = Benchmark(
    name="cmmmu",
    title="CMMMU (validation)",
    reference="the questions as JSON lines with id, type, category, option1-4 and answer",
    obtained_from="https://github.com/CMMMU-Benchmark/CMMMU",
    conventions={"bunny": _bunny},
)
