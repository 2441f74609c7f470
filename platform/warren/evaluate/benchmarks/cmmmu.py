"""CMMMU (arXiv 2401.11944): college-level questions in Chinese: choice, fill-in, true or false."""

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from warren.errors import DataError
from warren.evaluate.benchmarks.benchmark import Answer, Answers, Benchmark, Scores
from warren.evaluate.benchmarks.question import ImageFile, Question
from warren.evaluate.benchmarks.question_files import ImageFolder, lettered, matching_file
from warren.evaluate.benchmarks.reference_files import by_key, refuse_unknown
from warren.evaluate.benchmarks.table_records import Record, find_tables, read_records
from warren.evaluate.measures import share
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
_IMAGE = re.compile(r'<img="([^"]+)">')
_SEVERAL_IMAGES = "INVALID GENERATION FOR MULTIPLE IMAGE INPUTS"
_INSTRUCTIONS = {  # as Bunny's configuration of CMMMU has them
    _CHOICE: (
        "请回答以下多项选择题，并选出正确选项。这些题目可能包括单选和多选题型。"
        "如果所提供的信息不足以确定一个明确的答案，那么请根据可用的数据和你的判断来选择最可能正确的选项。"
    ),
    _TRUE_FALSE: (
        "请回答以下判断题，并根据题目描述和所给的信息来判断问题中陈述的对错。"
        "如果信息不完整或不足以作出绝对判断，请运用你的逻辑推理和现有信息来做出最可能的判断。"
    ),
    _FILL_IN: (
        "请回答以下填空题，并根据题目的要求和所提供的信息来给出最恰当的答案。"
        "如果信息不足以确切回答，那么请依据现有的数据和你的推理能力来填写最合理的答案。"
    ),
}
_ASKING_ORDER = ("艺术与设计", "商业", "健康与医学", "人文社会科学", "科学", "技术与工程")
_MORE_CHARS, _MORE_LETTERS = 20, 2  # by which a reply may exceed the truth and still be compared with it


def _bunny(answers: Answers, reference: Location) -> Scores:
    """Score as CMMMU's and Bunny's scripts; what cannot be read draws, Python's generator seeded with 42."""
    questions = {str(row["id"]): row.values for row in _records(reference, "val")}
    answered = by_key(answers)
    refuse_unknown(answered, questions, "CMMMU")
    generator = random.Random(_SEED)
    per_question: dict[str, dict[str, Any]] = {}
    drawn: list[str] = []
    by_category: dict[str, list[str]] = {}
    for category, title in _CATEGORIES.items():
        by_category[title] = [key for key in answered if questions[key]["category"] == category]
        for key in by_category[title]:
            decided, was_drawn = _decide(answered[key], questions[key], generator)
            per_question[key] = {**decided, "truth": questions[key]["answer"]}
            drawn += [key] if was_drawn else []
    by_category["Overall"] = list(per_question)
    right = {key: bool(decided["correct"]) for key, decided in per_question.items()}
    lucky = {key: value and key not in drawn for key, value in right.items()}
    tables = (
        {title: _entry([of[key] for key in keys]) for title, keys in by_category.items()} for of in (right, lucky)
    )
    measures = [share(f"{title}/acc", {key: right[key] for key in keys}) for title, keys in by_category.items() if keys]
    return Scores(len(questions), len(answered), next(tables), per_question, drawn, next(tables), measures=measures)


def _records(folder: Location, split: str) -> Iterator[Record]:
    """Read the JSON lines of CMMMU's repository, or the Parquet files of a split, in the order of the categories."""
    file = matching_file(folder, "data.jsonl", f"*{split}*.jsonl", "*.jsonl")
    tables = [file] if file else find_tables(folder, split)
    rows = [record for table in tables for record in read_records(table)]
    order = list(_ASKING_ORDER)
    return iter(rows if file else sorted(rows, key=lambda record: order.index(record["category"])))


def _questions(folder: Location, split: str) -> Iterator[Question]:
    """Ask as Bunny's script does; a question with two images is not asked and draws its answer."""
    generator = random.Random(_SEED)
    files = ImageFolder(folder.list())
    for record in _records(folder, split):
        options = [option for number in range(1, 5) if (option := record.get(f"option{number}")) is not None]
        kind = record["type"]
        if kind not in _INSTRUCTIONS:
            raise DataError(f"{record.where}: type {kind!r}; valid: {', '.join(_INSTRUCTIONS)}")
        if kind == _CHOICE and not options:
            raise DataError(f"{record.where} ({record['id']}): a multiple-choice question without options")
        question = f"问题：{record['question']}"
        if kind == _CHOICE:
            question = lettered(question + "\n选项：", options, "({}) {}") + "\n"
        fixed = None
        if record.image("image_2") or record.get("image_2"):
            fixed = generator.choice(_LETTERS[: len(options)]) if kind == _CHOICE else _SEVERAL_IMAGES
        text = f"{_INSTRUCTIONS[kind]}\n\n{question}\n正确答案：\n"
        images = record.image("image_1") or _named_image(record, files)
        key = str(record["id"])
        yield Question(key, text, images, record["category"], key, fixed)


def _named_image(record: Record, files: ImageFolder) -> tuple[ImageFile, ...]:
    """Return the first image that the question names as `<img="NAME">`, for the JSON lines."""
    named = _IMAGE.search(record["question"])
    return (files.find(named[1]),) if named else ()


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
    reference="the questions as JSON lines with id, type, category, option1-4 and answer, or the Parquet folder",
    obtained_from="https://huggingface.co/datasets/m-a-p/CMMMU; https://github.com/CMMMU-Benchmark/CMMMU",
    conventions={"bunny": _bunny},
    questions={"bunny": _questions},
    data="the Parquet folder with a folder of each category, or the JSON lines and their images",
    splits=("val", "test"),
)
