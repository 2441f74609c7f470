"""MMMU (arXiv 2311.16502): college-level questions, multiple choice and open."""

import ast
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from warren.errors import DataError
from warren.evaluate.benchmarks.benchmark import Answer, Answers, Benchmark, Scores
from warren.evaluate.benchmarks.question import Question
from warren.evaluate.benchmarks.question_files import LETTER, SHORT_ANSWER, lettered, matching_file
from warren.evaluate.benchmarks.reference_files import by_key, read_json, refuse_unknown
from warren.evaluate.benchmarks.table_records import Record, find_tables, read_records
from warren.evaluate.measures import Measure, share
from warren.evaluate.scorers.free_reply import Value, as_number, is_right, key_ends, numbers
from warren.evaluate.scorers.lmms_eval import NAME as LMMS_EVAL
from warren.evaluate.scorers.lmms_eval import chosen_option
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
ChoiceReader = Callable[[str, Sequence[str], Mapping[str, str]], str | None]
"""Takes a reply, the letters and the options' texts; returns the letter chosen."""

_MULTIPLE_CHOICE = "multiple-choice"
_SEED = 42
_UNKNOWN = "?"  # what the test split has in place of answers
_STRIPPED = (",", ".", "!", "?", ";", ":", "'")
_LONG_WORDS = 5  # longer replies are searched for the text of an option
_INDICATORS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_SENTENCE_END = re.compile(r"\.\s(?=[A-Z])|\n")
_NAMED_IMAGE = re.compile(r"<image (\d+)>")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)


def _bunny(answers: Answers, reference: Location) -> Scores:
    """Score as MMMU's and Bunny's scripts; replies without any option draw one, Python's generator seeded with 42."""
    return _score(answers, reference, _choice, 3)


def _lmms_eval(answers: Answers, reference: Location) -> Scores:
    """Score as lmms-eval's task `mmmu_val`, whose draws depend on its whole run; here the seed is 42."""
    answers = Answers(replace(answer, text=answer.text.strip()) for answer in answers)
    return _score(answers, reference, chosen_option, 5)


def _score(answers: Answers, reference: Location, read_choice: ChoiceReader, digits: int) -> Scores:
    truths = _truths(reference)
    answered = by_key(answers)
    refuse_unknown(answered, truths, "MMMU")
    generator = random.Random(_SEED)
    drawn, right, per_question = [], {}, {}
    for key, answer in answered.items():
        truth = truths[key]["ground_truth"]
        if truths[key]["question_type"] == _MULTIPLE_CHOICE:
            choices, texts = _options(answer, truths[key])
            decided = read_choice(answer.text, choices, texts)
            if decided is None:
                drawn.append(key)
                decided = generator.choice(choices)
            right[key] = decided in truth if isinstance(truth, list) else decided == truth
            per_question[key] = {"parsed": decided, "truth": truth, "right": right[key]}
        else:
            values = open_values(answer.text)
            right[key] = is_right(values, _accepted(truth))
            per_question[key] = {
                "parsed": answer.text,
                "values": sorted(map(str, values)),
                "truth": truth,
                "right": right[key],
            }
    without_luck = {key: value and key not in drawn for key, value in right.items()}
    submission = {key: row["parsed"] for key, row in per_question.items()}
    if all(truth["ground_truth"] == _UNKNOWN for truth in truths.values()):
        return Scores(len(truths), len(answered), None, per_question, drawn, submission=submission)
    tables = _table(right, digits), _table(without_luck, digits)
    return Scores(len(truths), len(answered), tables[0], per_question, drawn, tables[1], submission, _measures(right))


def _measures(right: Mapping[str, bool]) -> list[Measure]:
    """Return a share for every line of the table; the table itself is rounded to three decimals."""
    measures = [share("Overall/acc", right)]
    for domain, subjects in _DOMAINS.items():
        of_domain = {key: value for key, value in right.items() if _subject(key) in subjects}
        measures += [share(f"Overall-{domain}/acc", of_domain)] if of_domain else []
        for subject in subjects:
            of_subject = {key: value for key, value in of_domain.items() if _subject(key) == subject}
            measures += [share(f"{subject}/acc", of_subject)] if of_subject else []
    return measures


def _truths(reference: Location) -> dict[str, dict[str, Any]]:
    """Read answer_dict_val.json, or the Parquet files of the validation or test split."""
    file = matching_file(reference, "answer_dict*.json", "*.json")
    if file is not None:
        return read_json(file)  # type: ignore[no-any-return]
    truths = {}
    for record in _records(reference, "validation" if matching_file(reference, "validation*.parquet") else "test"):
        options = _option_list(record)
        letters = [chr(ord("A") + number) for number in range(len(options))]
        truths[str(record["id"])] = {
            "question_type": record["question_type"],
            "ground_truth": _ground_truth(record),
            "all_choices": letters,
            "index2ans": dict(zip(letters, options, strict=True)),
        }
    return truths


def _ground_truth(record: Record) -> Any:
    """Return the answer; several accepted ones are written as a Python list."""
    answer = record["answer"]
    if record["question_type"] != _MULTIPLE_CHOICE and answer.startswith("[") and answer.endswith("]"):
        return _literal(record, "answer")
    return answer


def _records(folder: Location, split: str) -> Iterator[Record]:
    for table in find_tables(folder, split):
        yield from read_records(table)


def _option_list(record: Record) -> list[str]:
    """Read the options, which are published as the text of a Python list.

    Raises:
        DataError: They are something else.
    """
    options = _literal(record, "options")
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise DataError(f"{record.where} ({record['id']}): the options {record['options']!r} are not a list of texts")
    if not options and record["question_type"] == _MULTIPLE_CHOICE:
        raise DataError(f"{record.where} ({record['id']}): a multiple-choice question without options")
    return options


def _literal(record: Record, column: str) -> Any:
    try:
        return ast.literal_eval(record[column])
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        shown = str(record[column])[:80]
        raise DataError(f"{record.where} ({record['id']}): {column} {shown!r} is not a Python list") from None


def _questions(folder: Location, split: str) -> Iterator[Question]:
    """Ask as Bunny's script does: the first image, options in brackets."""
    for record in _records(folder, split):
        if record["question_type"] == _MULTIPLE_CHOICE:
            text = f"{lettered(record['question'], _option_list(record), '({}) {}')}\n\n{LETTER}"
        else:
            text = f"{record['question']}\n{SHORT_ANSWER}"
        key = str(record["id"])
        yield Question(key, text, record.image("image_1"), _subject(key), key)


def _lmms_questions(folder: Location, split: str) -> Iterator[Question]:
    """Ask as lmms-eval does: every image that the question or its options name, then the text."""
    for record in _records(folder, split):
        if record["question_type"] == _MULTIPLE_CHOICE:
            text = f"{lettered(record['question'], _option_list(record))}\n\n{LETTER}"
        else:
            text = f"{record['question']}\n\n{SHORT_ANSWER}"
        columns = sorted({f"image_{number}" for number in _NAMED_IMAGE.findall(text)})
        images = tuple(image for column in columns for image in record.image(column))
        if len(images) != len(columns):
            raise DataError(f"{record.where} ({record['id']}): it names {len(columns)} images and has {len(images)}")
        key = str(record["id"])
        yield Question(key, text, images, _subject(key), key)


def _subject(key: str) -> str:
    """Return the subject in an id such as `validation_Art_Theory_12`."""
    return "_".join(key.split("_")[1:-1])


def _options(answer: Answer, truth: Mapping[str, Any]) -> tuple[list[str], Mapping[str, str]]:
    """Return letters and texts of the options, from the answer's line or from the reference."""
    choices = answer.row.get("all_choices") or truth.get("all_choices")
    texts = answer.row.get("index2ans") or truth.get("index2ans")
    if not choices or not isinstance(texts, dict):
        raise DataError(
            f"MMMU {answer.key}: the options are unknown: give MMMU's Parquet folder as the reference, or answers with "
            "all_choices and index2ans in each line"
        )
    return list(choices), texts


def _choice(text: str, choices: Sequence[str], texts: Mapping[str, str]) -> str | None:
    """Return the letter that a reply names last, or else the option whose text it names last; None for neither."""
    for char in _STRIPPED:
        text = text.strip(char)
    text = f" {text} "
    for form in ("({})", " {} "):
        named = [choice for choice in choices if form.format(choice) in text]
        if named:
            return max(named, key=lambda choice: text.rfind(form.format(choice)))
    if len(text.split()) <= _LONG_WORDS:
        return None
    lower = text.lower()
    named = [choice for choice, option in texts.items() if option.lower() in lower]
    return max(named, key=lambda choice: lower.rfind(texts[choice].lower()), default=None)


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


def _table(right: Mapping[str, bool], digits: int) -> dict[str, dict[str, Any]]:
    """Return number and share of right answers by subject and domain; domains and the whole weigh every question."""
    by_subject: dict[str, list[bool]] = {}
    for key, value in right.items():
        by_subject.setdefault(_subject(key), []).append(value)
    table = {}
    counted = []
    for domain, subjects in _DOMAINS.items():
        present = [subject for subject in subjects if subject in by_subject]
        of_domain = [value for subject in present for value in by_subject[subject]]
        if of_domain:
            table[f"Overall-{domain}"] = _entry(of_domain, digits)
            table |= {subject: _entry(by_subject[subject], digits) for subject in present}
            counted += of_domain
    return table | {"Overall": _entry(counted, digits)}


def _entry(right: Sequence[bool], digits: int) -> dict[str, Any]:
    return {"num": len(right), "acc": round(sum(right) / len(right), digits) if right else 0.0}


BENCHMARK = Benchmark(
    name="mmmu",
    title="MMMU (validation)",
    reference="the Parquet folder, or answer_dict_val.json and all_choices and index2ans in each line of answers",
    obtained_from="https://huggingface.co/datasets/MMMU/MMMU; https://github.com/MMMU-Benchmark/MMMU",
    conventions={"bunny": _bunny, LMMS_EVAL: _lmms_eval},
    questions={"bunny": _questions, LMMS_EVAL: _lmms_questions},
    data="the Parquet folder with a folder of each subject, such as Accounting/validation-00000-of-00001.parquet",
    splits=("validation", "test", "dev"),
)
