"""HallusionBench (arXiv 2310.14566): pairs of yes/no questions about images, some of them edited."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from warren.errors import DataError
from warren.evaluate.benchmarks.benchmark import Answers, Benchmark, JudgedConvention, JudgeRequest, Scores
from warren.evaluate.benchmarks.question import Question
from warren.evaluate.benchmarks.question_files import required_file, with_images
from warren.evaluate.benchmarks.reference_files import read_json
from warren.evaluate.measures import Measure, nested_values, share
from warren.evaluate.scorers.lmms_eval import NAME as LMMS_EVAL
from warren.evaluate.scorers.lmms_eval import complete
from warren.evaluate.scorers.vlmevalkit import NAME as VLMEVALKIT
from warren.evaluate.scorers.vlmevalkit import yes_or_no
from warren.storage import Location

_FIELDS = (
    *("category", "subcategory", "set_id", "figure_id", "question_id", "question", "gt_answer", "gt_answer_details"),
    *("visual_input", "filename"),
)
_TITLE = "HallusionBench"
_JUDGE_TOKENS = 16
_JUDGE_PROMPT = (  # HallusionBench's own, part of its definition
    "Imagine you are an intelligent teacher. Thoroughly read the question, reference answer and the prediction answer "
    "to ensure a clear understanding of the information provided. Assess the correctness of the predictions. If the "
    "prediction answer does not conflict with the reference answer, please generate “correct”. If the prediction "
    "answer conflict with the reference answer, please generate “incorrect”. If the prediction answer is unclear "
    'about the answer, please generate "unclear". \n\n Question:{question}\nReference answer: {reference}\nPrediction '
    "answer:{prediction}\nOutput:"
)
_RIGHT, _WRONG, _UNCLEAR = "correct", "incorrect", "unclear"
_Row = Mapping[str, Any]


def _rows(folder: Location) -> dict[str, _Row]:
    """Return the questions that have an image, by the id that their fields make."""
    file = required_file(folder, "HallusionBench.json", "*allusion*.json")
    rows = read_json(file)
    unique: dict[str, _Row] = {}
    for number, row in enumerate(rows if isinstance(rows, list) else [None], 1):
        missing = [name for name in _FIELDS if not isinstance(row, dict) or name not in row]
        if missing:
            raise DataError(f"{file}: row {number} has no {', '.join(missing)}; give HallusionBench.json as published")
        key = _joined(row, "figure_id", "question_id")
        if unique.setdefault(key, row) is not row:
            raise DataError(f"{file}: row {number}: the question {key} occurs twice")
    return {key: row for key, row in unique.items() if row["filename"]}


def _joined(row: _Row, *ids: str) -> str:
    return "_".join(str(row[name]) for name in ("category", "subcategory", "set_id", *ids))


def _vlmevalkit(answers: Answers, reference: Location) -> Scores:
    """Score as VLMEvalKit does without a judge: yes or no is read from the words of the answer."""
    rows = _rows(reference)
    answered = complete(answers, rows, _TITLE, convention=VLMEVALKIT)
    predictions = {key: yes_or_no(answer.text) for key, answer in answered.items()}
    right = {key: text is not None and text == _truth(rows[key]) for key, text in predictions.items()}
    kinds: dict[str, Callable[[_Row], str]] = {
        "category": lambda row: str(row["category"]),
        "subcategory": lambda row: f"{row['category']}_{row['subcategory']}",
    }
    measures = _accuracies(right, rows)
    for kind, name_of in kinds.items():
        for name in sorted({name_of(rows[key]) for key in right}):
            of = {key: value for key, value in right.items() if name_of(rows[key]) == name}
            measures += _accuracies(of, rows, f"{kind}/{name}/")
    per_question = {
        key: {"prediction": predictions[key] or "Unknown", "truth": _truth(rows[key]), "right": value}
        for key, value in right.items()
    }
    return Scores(len(rows), len(answered), nested_values(measures), per_question, measures=measures)


def _truth(row: _Row) -> str:
    return "Yes" if str(row["gt_answer"]) == "1" else "No"


def _accuracies(right: Mapping[str, bool], rows: Mapping[str, _Row], prefix: str = "") -> list[Measure]:
    """Return the shares of right questions, of figures with all questions right, of questions right on all figures."""
    images = {key: _joined(rows[key], "figure_id") for key in right}
    tables = {
        "aAcc": right,
        "fAcc": _all_right(right, images),
        "qAcc": _all_right(right, {key: _joined(rows[key], "question_id") for key in right}),
    }
    clusters = images | {name: name for table in ("fAcc", "qAcc") for name in tables[table]}
    return [share(f"{prefix}{name}", of, 100, clusters) for name, of in tables.items() if of]


def _all_right(right: Mapping[str, bool], groups: Mapping[str, str]) -> dict[str, bool]:
    all_right: dict[str, bool] = {}
    for key, value in right.items():
        all_right[groups[key]] = all_right.get(groups[key], True) and value
    return all_right


def _requests(answers: Answers, reference: Location) -> Sequence[JudgeRequest]:
    rows = _rows(reference)
    return [
        JudgeRequest(key, _judge_prompt(rows[key], answer.text), _JUDGE_TOKENS)
        for key, answer in complete(answers, rows, _TITLE).items()
    ]


def _judge_prompt(row: _Row, prediction: str) -> str:
    return _JUDGE_PROMPT.format(question=row["question"], reference=row["gt_answer_details"], prediction=prediction)


def _read(judgement: str) -> str | None:
    """Return the word that a judgement holds; `incorrect` holds `correct`."""
    lower = judgement.lower()
    return next((word for word in (_WRONG, _RIGHT, _UNCLEAR) if word in lower), None)


def _judged(answers: Answers, reference: Location, judged: Mapping[str, str]) -> Scores:
    """Score as lmms-eval's task `hallusion_bench_image`."""
    rows = _rows(reference)
    right = {key: word == _RIGHT for key, word in judged.items()}
    measures = _accuracies(right, rows)
    per_question = {key: {"truth": rows[key]["gt_answer_details"], "right": value} for key, value in right.items()}
    return Scores(len(rows), len(judged), nested_values(measures), per_question, measures=measures)


def _questions(folder: Location, split: str) -> Iterator[Question]:
    """Read the questions that have an image; their texts are sent as they are."""
    with_paths = [
        (Question(key, row["question"], group=f"{row['category']}_{row['subcategory']}"), [_path(row)])
        for key, row in _rows(folder).items()
    ]
    return with_images(folder, with_paths)


def _path(row: _Row) -> str:
    return str(row["filename"]).removeprefix("./")


BENCHMARK = Benchmark(
    name="hallusionbench",
    title=_TITLE,
    reference="HallusionBench.json",
    obtained_from="https://github.com/tianyi-lab/HallusionBench",
    conventions={
        VLMEVALKIT: _vlmevalkit,
        LMMS_EVAL: JudgedConvention(lambda _: {"hallusionbench": _JUDGE_PROMPT}, _requests, _read, _judged),
    },
    questions={VLMEVALKIT: _questions},
    data="HallusionBench.json and hallusion_bench/ with its images; questions without an image are not asked",
    splits=("image",),
)
