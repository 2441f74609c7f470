"""MMMU (arXiv 2311.16502): college-level questions, multiple choice and open."""

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from warren.errors import DataError
from warren.evaluate.benchmarks.benchmark import Answer, Benchmark, Scores
from warren.evaluate.benchmarks.reading import by_key, find_file, read_json, refuse_unknown
from warren.evaluate.scorers.free_reply import Value, as_number, is_right, key_ends, numbers
from warren.storage import Location

_DOMAINS = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": (
        *("Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine"),
        *("Pharmacy", "Public_Health"),
    ),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": (
        *("Agriculture", "Architecture_and_Engineering", "Computer_Science", "Electronics"),
        *("Energy_and_Power", "Materials", "Mechanical_Engineering"),
    ),
}
_MULTIPLE_CHOICE = "multiple-choice"
_SEED = 42
_STRIPPED = (",", ".", "!", "?", ";", ":", "'")
_LONG_WORDS = 5  # longer replies are searched for the text of an option
_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_SENTENCE_END = re.compile(r"\.\s(?=[A-Z])|\n")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def _bunny(answers: Sequence[Answer], reference: Location) -> Scores:
    """Score as MMMU's and Bunny's scripts; replies without any option draw one, Python's generator seeded with 42."""
    truths = read_json(find_file(reference, "answer_dict*.json"))
    given = by_key(answers)
    refuse_unknown(given, truths, "MMMU")
    generator = random.Random(_SEED)
    drawn, right, per_question = [], {}, {}
    for key, answer in given.items():
        truth = truths[key]["ground_truth"]
        if truths[key]["question_type"] == _MULTIPLE_CHOICE:
            choices, texts = _options(answer)
            decided = _choice(answer.text, choices, texts)
            if decided is None:
                drawn.append(key)
                decided = generator.choice(choices)
            right[key] = decided in truth if isinstance(truth, list) else decided == truth
            per_question[key] = {"parsed": decided, "right": right[key]}
        else:
            values = open_values(answer.text)
            right[key] = is_right(values, _accepted(truth))
            per_question[key] = {"parsed": answer.text, "values": sorted(map(str, values)), "right": right[key]}
    without_luck = {key: value and key not in drawn for key, value in right.items()}
    return Scores(len(truths), len(given), _table(right), per_question, drawn, _table(without_luck))


def _options(answer: Answer) -> tuple[list[str], Mapping[str, str]]:
    choices, texts = answer.row.get("all_choices"), answer.row.get("index2ans")
    if not choices or not isinstance(texts, dict):
        raise DataError(f"MMMU {answer.key}: a multiple-choice answer needs its all_choices and index2ans in its line")
    return list(choices), texts


def _choice(text: str, choices: Sequence[str], texts: Mapping[str, str]) -> str | None:
    """Return the letter that a reply names last, or else the option whose text it names last; None for neither."""
    for char in _STRIPPED:
        text = text.strip(char)
    text = f" {text} "
    for form in ("({})", " {} "):
        found = [choice for choice in choices if form.format(choice) in text]
        if found:
            return max(found, key=lambda choice: text.rfind(form.format(choice)))
    if len(text.split()) <= _LONG_WORDS:
        return None
    lower = text.lower()
    found = [choice for choice, option in texts.items() if option.lower() in lower]
    return max(found, key=lambda choice: lower.rfind(texts[choice].lower()), default=None)


def open_values(text: str) -> set[Value]:
    """Return what a free reply may mean: the ends of its sentences that follow an indicator, and its numbers."""
    text = text.strip().strip(".").lower()
    ends = key_ends(_SENTENCE_END.split(text), _INDICATORS) or [text]
    parts = [*ends, *(number for end in ends for number in numbers(end, _NUMBERS))]
    return {value for part in parts for value in _normal(part)}


def _normal(text: str) -> list[Value]:
    text = text.strip().lower()
    number = as_number(text)
    if number is not None:
        return [number]
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def _accepted(truth: str | list[str]) -> list[Value]:
    return [value for one in ([truth] if isinstance(truth, str) else truth) for value in _normal(one)]


def _table(right: Mapping[str, bool]) -> dict[str, dict[str, Any]]:
    """Return number and share of right answers by subject and domain; domains and the whole weigh every question."""
    by_subject: dict[str, list[bool]] = {}
    for key, value in right.items():
        by_subject.setdefault("_".join(key.split("_")[1:-1]), []).append(value)
    table = {}
    counted = []
    for domain, subjects in _DOMAINS.items():
        present = [subject for subject in subjects if subject in by_subject]
        of_domain = [value for subject in present for value in by_subject[subject]]
        if of_domain:
            table[f"Overall-{domain}"] = _entry(of_domain)
            table |= {subject: _entry(by_subject[subject]) for subject in present}
            counted += of_domain
    return table | {"Overall": _entry(counted)}


def _entry(right: Sequence[bool]) -> dict[str, Any]:
    return {"num": len(right), "acc": round(sum(right) / len(right), 3) if right else 0.0}


BENCHMARK = Benchmark(
    name="mmmu",
    title="MMMU (validation)",
    reference="answer_dict_val.json; the answers hold all_choices and index2ans of multiple-choice questions",
    obtained_from="https://github.com/MMMU-Benchmark/MMMU",
    conventions={"bunny": _bunny},
)
