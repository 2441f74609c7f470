"""LLaVA-Bench in the wild (arXiv 2304.08485): a judge model compares a model's answer with GPT-4's."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from warren.errors import DataError
from warren.evaluate.benchmarks.benchmark import Answers, Benchmark, JudgedConvention, JudgeRequest, Scores
from warren.evaluate.benchmarks.question import Question
from warren.evaluate.benchmarks.question_files import questions_of_file, required_file
from warren.evaluate.benchmarks.reference_files import read_json, read_json_lines
from warren.evaluate.measures import Measure, summed
from warren.evaluate.scorers.lmms_eval import NAME as LMMS_EVAL
from warren.evaluate.scorers.lmms_eval import complete
from warren.storage import Location

_TITLE = "LLaVA-Bench (in the wild)"
_CATEGORIES = ("conv", "detail", "complex")
_JUDGE_TOKENS = 1024
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_BEST = 10  # the rules ask for 1 to 10; judges also give a bad answer 0
_Row = Mapping[str, Any]


def _rows(folder: Location, name: str, key: str, *fields: str) -> dict[str, _Row]:
    """Read one of the published files of JSON lines, by one of its fields."""
    file = required_file(folder, name)
    unique: dict[str, _Row] = {}
    for number, row in enumerate(read_json_lines(file), 1):
        missing = [field for field in (key, *fields) if not isinstance(row, dict) or field not in row]
        if missing:
            raise DataError(f"{file}: line {number} has no {', '.join(missing)}; give the published file")
        if unique.setdefault(str(row[key]), row) is not row:
            raise DataError(f"{file}: {key} {row[key]!r} occurs twice")
    return unique


def _asked(folder: Location) -> dict[str, _Row]:
    return _rows(folder, "questions.jsonl", "question_id", "text", "image", "category")


def _rules(folder: Location) -> dict[str, tuple[str, str]]:
    """Return what the judge is told about each category: the answers' role and the instruction."""
    file = required_file(folder, "rule.json")
    rules = read_json(file)
    try:
        return {
            name: (rules[f"llava_bench_{name}"]["role"], rules[f"llava_bench_{name}"]["prompt"]) for name in _CATEGORIES
        }
    except (KeyError, TypeError) as error:
        raise DataError(f"{file}: no rule {error}; give llava/eval/table/rule.json of LLaVA's repository") from None


def _requests(answers: Answers, reference: Location) -> Sequence[JudgeRequest]:
    questions = _asked(reference)
    rules = _rules(reference)
    contexts = _rows(reference, "context.jsonl", "image", "caption")
    others = _rows(reference, "answers_gpt4.jsonl", "question_id", "text")
    requests = []
    for key, answer in complete(answers, questions, _TITLE).items():
        question = questions[key]
        for place, rows, name in (
            (key, others, "answers_gpt4.jsonl"),
            (str(question["image"]), contexts, "context.jsonl"),
            (question["category"], rules, "rule.json"),
        ):
            if place not in rows:
                raise DataError(f"{reference}: question {key!r} needs {place!r} of {name}, which has none")
        caption = contexts[str(question["image"])]["caption"]
        context = "\n".join(caption) if isinstance(caption, list) else caption
        prompt = _judge_prompt(context, question["text"], others[key]["text"], answer.text, rules[question["category"]])
        requests.append(JudgeRequest(key, prompt, _JUDGE_TOKENS))
    return requests


def _judge_prompt(context: str, question: str, first: str, second: str, rule: tuple[str, str]) -> str:
    """Return what is judged, in the form of LLaVA's script."""
    role, instruction = rule
    shown = [f"[{role} {number}]\n{text}\n\n[End of {role} {number}]" for number, text in enumerate((first, second), 1)]
    return "\n\n".join([f"[Context]\n{context}", f"[Question]\n{question}", *shown, f"[System]\n{instruction}", ""])


def _read(judgement: str) -> tuple[float, float] | None:
    """Return the scores of both answers, the two numbers of the first line. A line with other numbers says nothing."""
    numbers = [float(text) for text in _NUMBER.findall(judgement.strip().split("\n")[0])]
    if len(numbers) != 2 or not 0 < numbers[0] <= _BEST or not 0 <= numbers[1] <= _BEST:
        return None
    return numbers[0], numbers[1]


def _score(answers: Answers, reference: Location, judged: Mapping[str, tuple[float, float]]) -> Scores:
    """Score as lmms-eval's task `llava_in_the_wild`: the model's mean as a percentage of GPT-4's."""
    questions = _asked(reference)
    tables = {"all": dict(judged)} | {
        name: {key: pair for key, pair in judged.items() if questions[key]["category"] == name} for name in _CATEGORIES
    }
    measures = [_relative(f"gpt_eval_llava_{name}", pairs, questions) for name, pairs in tables.items() if pairs]
    scores = {measure.name: _rounded(list(tables[measure.name.rpartition("_")[2]].values())) for measure in measures}
    per_question = {key: {"scores": list(pair), "score": pair[1] / _BEST} for key, pair in judged.items()}
    return Scores(len(questions), len(judged), scores, per_question, measures=measures)


def _relative(name: str, pairs: Mapping[str, tuple[float, float]], questions: Mapping[str, _Row]) -> Measure:
    images = {key: str(questions[key]["image"]) for key in pairs}
    return summed(name, "ratio", {key: (second, first) for key, (first, second) in pairs.items()}, 100, images)


def _rounded(pairs: Sequence[tuple[float, float]]) -> float:
    """Return the ratio of means, rounded where LLaVA's script rounds."""
    first, second = (round(sum(pair[place] for pair in pairs) / len(pairs), 3) for place in (0, 1))
    return round(second / first * 100, 1)


def _questions(folder: Location, split: str) -> Iterator[Question]:
    return questions_of_file(required_file(folder, "questions.jsonl"), folder)


BENCHMARK = Benchmark(
    name="llava_bench",
    title=_TITLE,
    reference="the folder of questions.jsonl, context.jsonl, answers_gpt4.jsonl and rule.json",
    obtained_from="https://huggingface.co/datasets/liuhaotian/llava-bench-in-the-wild; rule.json: https://github.com/haotian-liu/LLaVA",
    conventions={
        LMMS_EVAL: JudgedConvention(
            lambda folder: {name: prompt for name, (_, prompt) in _rules(folder).items()}, _requests, _read, _score
        )
    },
    questions={LMMS_EVAL: _questions},
    data="questions.jsonl and images/",
    max_new_tokens=4096,
)
