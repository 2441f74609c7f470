"""MM-Vet (arXiv 2308.02490): free answers that a judge model scores, here or on MM-Vet's server."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from warren.errors import DataError
from warren.evaluate.benchmarks.benchmark import Answers, Benchmark, JudgedConvention, JudgeRequest, Scores
from warren.evaluate.benchmarks.question import Question
from warren.evaluate.benchmarks.question_files import matching_file, questions_of_file, required_file, with_images
from warren.evaluate.benchmarks.reference_files import by_key, read_json
from warren.evaluate.measures import mean
from warren.evaluate.scorers.lmms_eval import NAME as LMMS_EVAL
from warren.evaluate.scorers.lmms_eval import complete
from warren.storage import Location

_PREFIX = "v1_"
_JUDGE_PROMPT = Path(__file__).with_name("mmvet_judge_prompt.txt").read_text()  # MM-Vet's own, part of its definition
_JUDGE_TOKENS = 128
_CAPABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")
_METRIC = "gpt_eval_score"
_REASONING = (
    "First please perform reasoning, and think step by step to provide best answer to the following question: \n\n"
)


def _bunny(answers: Answers, reference: Location) -> Scores:
    """Write one object of id and text."""
    answered = by_key(answers)
    submission = {f"{_PREFIX}{key}": answer.text for key, answer in answered.items()}
    return Scores(len(answered), len(answered), None, submission=submission)


def _rows(folder: Location) -> dict[str, dict[str, Any]]:
    """Return MM-Vet's questions by their number."""
    file = required_file(folder, "mm-vet.json", "*mm-vet*.json", "*mmvet*.json")
    rows = read_json(file)
    needed = {"question", "answer", "capability", "imagename"}
    if not isinstance(rows, dict) or not all(isinstance(row, dict) and needed <= row.keys() for row in rows.values()):
        raise DataError(f"{file}: expected MM-Vet's object of ids, each with {', '.join(sorted(needed))}")
    return {key.removeprefix(_PREFIX): row for key, row in rows.items()}


def _requests(answers: Answers, reference: Location) -> Sequence[JudgeRequest]:
    rows = _rows(reference)
    return [
        JudgeRequest(key, _judge_prompt(rows[key], answer.text), _JUDGE_TOKENS)
        for key, answer in complete(answers, rows, "MM-Vet").items()
    ]


def _judge_prompt(row: Mapping[str, Any], prediction: str) -> str:
    """Return the last, open row of the judge's table."""
    truth = str(row["answer"]).replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    return f"{_JUDGE_PROMPT}\n{row['question']} | {truth} | {prediction} |"


def _read(judgement: str) -> float | None:
    """Return the number between 0 and 1 that a judgement begins with."""
    try:
        score = float(judgement.strip().split(" ")[0])
    except ValueError:
        return None
    return score if 0 <= score <= 1 else None


def _score(answers: Answers, reference: Location, judged: Mapping[str, float]) -> Scores:
    """Score as lmms-eval's task `mmvet`; MM-Vet's tables of capabilities go with it."""
    rows = _rows(reference)
    groups: dict[str, dict[str, float]] = {_METRIC: dict(judged)}
    for capability in _CAPABILITIES:
        groups[f"capabilities/{capability}"] = {k: v for k, v in judged.items() if capability in rows[k]["capability"]}
    for key, value in judged.items():
        groups.setdefault(f"integrations/{'_'.join(sorted(rows[key]['capability']))}", {})[key] = value
    images = {key: str(row["imagename"]) for key, row in rows.items()}
    measures = [mean(name, of, 100, images) for name, of in groups.items() if of]
    scores: dict[str, Any] = {}
    for measure in measures:
        group, _, name = measure.name.rpartition("/")
        (scores.setdefault(group, {}) if group else scores)[name] = measure.value
    per_question = {key: {"truth": rows[key]["answer"], "score": value} for key, value in judged.items()}
    return Scores(len(rows), len(judged), scores, per_question, measures=measures)


def _questions(folder: Location, split: str) -> Iterator[Question]:
    """Read Bunny's question file, or MM-Vet's own."""
    file = matching_file(folder, "*mm-vet*.jsonl", "*mmvet*.jsonl")
    if file is not None:
        return questions_of_file(file, folder)
    with_paths = [
        (Question(key, row["question"], group=",".join(row["capability"])), [row["imagename"]])
        for key, row in _rows(folder).items()
    ]
    return with_images(folder, with_paths)


def _lmms_questions(folder: Location, split: str) -> Iterator[Question]:
    """Ask for reasoning first, as lmms-eval does."""
    return (replace(question, text=f"{_REASONING}{question.text}") for question in _questions(folder, split))


BENCHMARK = Benchmark(
    name="mmvet",
    title="MM-Vet",
    reference="bunny: nothing, the ids are in the answers (give the answers file itself); lmms-eval: mm-vet.json",
    obtained_from="https://github.com/yuweihao/MM-Vet; scores: https://huggingface.co/spaces/whyu/MM-Vet_Evaluator",
    conventions={
        "bunny": _bunny,
        LMMS_EVAL: JudgedConvention(lambda _: {"mmvet": _JUDGE_PROMPT}, _requests, _read, _score),
    },
    questions={"bunny": _questions, LMMS_EVAL: _lmms_questions},
    data="mm-vet.json (or bunny-mm-vet.jsonl) and images/",
    max_new_tokens=1024,
)
