"""MMBench (arXiv 2307.06281): the server scores; this writes the sheet that it takes."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from warren.errors import ConfigError, DataError
from warren.evaluate.benchmarks.benchmark import Answers, Benchmark, Scores
from warren.evaluate.benchmarks.question import Question
from warren.evaluate.benchmarks.question_files import LETTER, lettered
from warren.evaluate.benchmarks.reference_files import by_key, find_file, refuse_unknown
from warren.evaluate.benchmarks.table_records import Record, read_records
from warren.evaluate.measures import share
from warren.evaluate.scorers.lmms_eval import NAME as LMMS_EVAL
from warren.evaluate.scorers.lmms_eval import complete, matched_option
from warren.evaluate.scorers.vlmevalkit import NAME as VLMEVALKIT
from warren.evaluate.scorers.vlmevalkit import chosen_option
from warren.storage import Location

_LEFT_OUT = {"hint", "category", "source", "image", "comment", "l2-category"}
_ROTATION = 1_000_000  # rotations of a question have the same index modulo this
_PREDICTION, _BEFORE = "prediction", 6
_OPTIONS = ("A", "B", "C", "D")
_CHINESE_LETTER = "请直接回答选项字母。"
_ABSENT = ("nan", "none")  # as pandas writes empty fields


def _bunny(answers: Answers, reference: Location) -> Scores:
    """Write the table without images and categories, and with a column of raw answers; empty where there is none."""
    columns, rows = _read(find_file(reference, "mmbench_*.tsv", "*.tsv"))
    answered = by_key(answers)
    refuse_unknown(answered, (str(row["index"]) for row in rows), "MMBench")
    kept = [column for column in columns if column not in _LEFT_OUT]
    kept.insert(_BEFORE, _PREDICTION)
    num_answered = 0
    sheet = []
    for row in rows:
        answer = answered.get(str(row["index"]))
        num_answered += answer is not None
        sheet.append([{**row, _PREDICTION: (answer.text or None) if answer else None}[column] for column in kept])
    return Scores(len(rows), num_answered, None, submission={"columns": kept, "rows": sheet})


def _lmms_eval(answers: Answers, reference: Location) -> Scores:
    """Score as lmms-eval's task `mmbench_en_dev_static`: a question is right if all its rotations are."""
    return _circular(
        answers, reference, LMMS_EVAL, lambda text, options: matched_option(text.strip(), options), "overall"
    )


def _vlmevalkit(answers: Answers, reference: Location) -> Scores:
    """Score as VLMEvalKit's datasets `MMBench_DEV_*` without a judge model: the same, letters read by its rules.

    `vanilla` is the share of right answers to the questions as they are first in the table, without rotations.
    """
    return _circular(answers, reference, VLMEVALKIT, chosen_option, "Overall", "vanilla")


def _circular(
    answers: Answers,
    reference: Location,
    convention: str,
    read: Callable[[str, Mapping[str, str]], str | None],
    overall: str,
    plain: str | None = None,
) -> Scores:
    records = {
        str(record["index"]): record for record in _records(find_file(reference, "*dev*.tsv", "*DEV*.tsv", "*.tsv"))
    }
    if any("answer" not in record.values for record in records.values()):
        raise DataError(f"{reference}: this table has no answers: only the server scores the test split")
    answered = complete(answers, records, "MMBench", convention=convention)
    failed = {int(key) % _ROTATION for key in answers.failed}
    right: dict[str, bool] = {}
    first: dict[str, bool] = {}
    for key, answer in answered.items():
        record, question = records[key], str(int(key) % _ROTATION)
        options = {letter: option for letter in _OPTIONS if (option := _present(record.get(letter))) is not None}
        is_right = read(answer.text, options) == record["answer"]
        if int(question) not in failed:
            right[question] = right.get(question, True) and is_right
        if key == question:
            first[key] = is_right
    tables = {overall: right} | ({plain: first} if plain else {})
    for column in ("category", "l2-category"):
        for key, value in right.items():
            tables.setdefault(f"{column}/{records[key].get(column)}", {})[key] = value
    measures = [share(name, of) for name, of in tables.items()]
    scores: dict[str, Any] = {}
    for measure in measures:
        column, is_group, name = measure.name.partition("/")
        if is_group:
            scores.setdefault(column, {})[name] = measure.value
        else:
            scores[column] = measure.value
    per_question = {key: {"truth": records[key]["answer"], "right": value} for key, value in right.items()}
    return Scores(len(records), len(answered), scores, per_question, measures=measures)


def _read(file: Location) -> tuple[list[str], list[dict[str, Any]]]:
    """Read the published table; empty fields are None and the index is a number."""
    rows = [dict(record.values) for record in _records(file)]
    return list(rows[0]), [{**row, "index": int(row["index"])} for row in rows]


def _records(file: Location) -> list[Record]:
    """Read the table and check that it is MMBench's."""
    records = list(read_records(file))
    columns = list(records[0].values) if records else []
    if not {"index", "question", "A", "B"} <= set(columns):
        raise DataError(f"{file}: an MMBench table has columns index, question, A, B; found {', '.join(columns)}")
    for record in records:
        if not str(record["index"]).isdigit():
            raise DataError(f"{record.where}: the index {record['index']!r} is not a number")
    return records


def _questions(folder: Location, split: str) -> Iterator[Question]:
    """Read the table of a split. Rotated questions of circular evaluation are rows of it, as published."""
    part, _, language = split.partition("-")
    for record in _records(_table(folder, part, language)):
        text = "\n".join(filter(None, (_present(record.get("hint")), str(record["question"]))))
        text = f"{lettered(text, _options(record))}\n{_CHINESE_LETTER if language == 'cn' else LETTER}"
        if not record.image("image"):
            raise DataError(f"{record.where}: no image")
        index = int(record["index"])
        group = str(record.get("category") or "")
        yield Question(str(index), text, record.image("image"), group, str(index % _ROTATION))


def _lmms_questions(folder: Location, split: str) -> Iterator[Question]:
    """Ask as lmms-eval does; its Chinese task differs and is not offered."""
    part, _, language = split.partition("-")
    if language == "cn":
        raise ConfigError("MMBench in Chinese has no prompts of lmms-eval here; ask with --convention bunny")
    for question, record in zip(_questions(folder, split), _records(_table(folder, part, language)), strict=True):
        hint = _present(record.get("hint"))
        text = lettered(
            f"{f'{hint} ' if hint else ''}{record['question']} There are several options:", _options(record)
        )
        yield replace(question, text=f"{text}\n\n{LETTER}")


def _table(folder: Location, part: str, language: str) -> Location:
    """Return the table of a split, whose name says `cn` where it is Chinese."""
    below = [file for file in folder.list() if file.name.lower().endswith(".tsv")]
    if not below:
        return folder
    named = [file for file in below if part in file.name.lower() and ("cn" in file.name.lower()) == (language == "cn")]
    if len(named) != 1:
        names = ", ".join(file.name for file in below)
        raise DataError(
            f"{folder}: expected one table of {part}-{language}, such as MMBench_DEV_EN_legacy.tsv; found {names}"
        )
    return named[0]


def _options(record: Record) -> list[str]:
    """Return the options up to the first empty one."""
    options = []
    for letter in _OPTIONS:
        option = _present(record.get(letter))
        if option is None:
            break
        options.append(option)
    if len(options) < 2:
        raise DataError(f"{record.where}: {len(options)} options; a question has at least A and B")
    return options


def _present(value: Any) -> str | None:
    return None if value is None or str(value).lower() in _ABSENT else str(value)


BENCHMARK = Benchmark(
    name="mmbench",
    title="MMBench (en, cn; dev, test)",
    reference="the legacy table, such as mmbench_dev_20230712.tsv",
    obtained_from="https://github.com/open-compass/MMBench; scores: https://mmbench.opencompass.org.cn",
    conventions={"bunny": _bunny, LMMS_EVAL: _lmms_eval, VLMEVALKIT: _vlmevalkit},
    questions={"bunny": _questions, LMMS_EVAL: _lmms_questions},
    data="the split's table, such as MMBench_DEV_EN_legacy.tsv or MMBench_TEST_CN_legacy.tsv; images are in it",
    splits=("dev-en", "test-en", "dev-cn", "test-cn"),
    submission_format=".xlsx",
)
