"""GQA (arXiv 1902.09506): compositional questions about real scenes, answered by a word or a phrase."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from warren.errors import DataError
from warren.evaluate.benchmarks.benchmark import Answers, Benchmark, Scores
from warren.evaluate.benchmarks.question import Question
from warren.evaluate.benchmarks.question_files import SHORT_ANSWER, matching_file, questions_of_file, with_images
from warren.evaluate.benchmarks.reference_files import by_key, find_file, read_json
from warren.evaluate.measures import Measure, share
from warren.evaluate.scorers.lmms_eval import NAME as LMMS_EVAL
from warren.evaluate.scorers.lmms_eval import complete, same_but_for_punctuation
from warren.storage import Location

_NO_STEP = ("exist", "query: name", "choose name")  # operations that the published script does not count
_GROUPS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "Accuracy / structural type": lambda question: question["types"]["structural"],
    "Accuracy / semantic type": lambda question: question["types"]["semantic"],
    "Accuracy / steps number": lambda question: str(_num_steps(question)),
    "Accuracy / words number": lambda question: str(len(question["question"].split())),
}


def _bunny(answers: Answers, reference: Location) -> Scores:
    """Score as GQA's `eval.py` in the reduced form that LLaVA and Bunny use; in percent.

    Validity and plausibility need the scene graphs and are zero, as there.
    """
    questions = read_json(find_file(reference, "testdev_balanced_questions.json", "*_questions.json"))
    questions = {
        key: question for key, question in questions.items() if question["isBalanced"] and key not in answers.failed
    }
    predictions = {key: answer.text.rstrip(".").lower() for key, answer in by_key(answers).items()}
    missing = [key for key in questions if key not in predictions]
    if missing:
        raise DataError(
            f"GQA: no answer to {len(missing)} of {len(questions)} questions, the first is {missing[0]!r}; "
            "every question needs one"
        )
    right = {key: predictions[key] == question["answer"] for key, question in questions.items()}
    is_open = {key: question["types"]["structural"] == "query" for key, question in questions.items()}
    main = {
        "Binary": _percent([right[key] for key in questions if not is_open[key]]),
        "Open": _percent([right[key] for key in questions if is_open[key]]),
        "Accuracy": _percent(list(right.values())),
        "Validity": 0.0,
        "Plausibility": 0.0,
        "Distribution": _distribution(questions, predictions),
    }
    scores = {"main": main, "detailed": {name: _by(group, questions, right) for name, group in _GROUPS.items()}}
    per_question = {
        key: {"prediction": predictions[key], "truth": questions[key]["answer"], "right": right[key]}
        for key in questions
    }
    submission = [{"questionId": key, "prediction": prediction} for key, prediction in predictions.items()]
    measures = _measures(questions, right)
    return Scores(len(questions), len(questions), scores, per_question, submission=submission, measures=measures)


def _lmms_eval(answers: Answers, reference: Location) -> Scores:
    """Score as lmms-eval's task `gqa`: equal but for case and punctuation."""
    every = read_json(find_file(reference, "testdev_balanced_questions.json", "*_questions.json"))
    questions = {key: question for key, question in every.items() if question["isBalanced"]}
    answered = complete(answers, questions, "GQA", every)
    right = {key: same_but_for_punctuation(each.text, questions[key]["answer"]) for key, each in answered.items()}
    measure = share("exact_match", right, 1, {key: str(questions[key]["imageId"]) for key in right})
    per_question = {key: {"truth": questions[key]["answer"], "right": value} for key, value in right.items()}
    return Scores(len(questions), len(answered), {measure.name: measure.value}, per_question, measures=[measure])


def _measures(questions: Mapping[str, Any], right: Mapping[str, bool]) -> list[Measure]:
    images = {key: str(question["imageId"]) for key, question in questions.items()}
    is_open = {key: question["types"]["structural"] == "query" for key, question in questions.items()}
    measures = [
        share("main/Accuracy", right, 100, images),
        share("main/Binary", {key: value for key, value in right.items() if not is_open[key]}, 100, images),
        share("main/Open", {key: value for key, value in right.items() if is_open[key]}, 100, images),
    ]
    for name, group in _GROUPS.items():
        members: dict[str, dict[str, bool]] = defaultdict(dict)
        for key, question in questions.items():
            members[group(question)][key] = right[key]
        measures += [share(f"detailed/{name}/{title}", of, 100, images) for title, of in sorted(members.items())]
    return measures


def _by(group: Any, questions: Mapping[str, Any], right: Mapping[str, bool]) -> dict[str, list[float]]:
    """Return percent right and the number of questions, by group."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for key, question in questions.items():
        groups[group(question)].append(right[key])
    return {name: [_percent(of), len(of)] for name, of in sorted(groups.items())}


def _num_steps(question: Mapping[str, Any]) -> int:
    steps = (f"{step['operation']}: {step['argument']}" for step in question["semantic"])
    return sum(not any(part in step for part in _NO_STEP) for step in steps)


def _distribution(questions: Mapping[str, Any], predictions: Mapping[str, str]) -> float:
    """Return a hundredth of the chi-square between answers and truths, weighted over global groups; 0 is best."""
    truths: dict[str, Counter[str]] = defaultdict(Counter)
    predicted: dict[str, Counter[str]] = defaultdict(Counter)
    for key, question in questions.items():
        group = question["groups"]["global"]
        if group is not None:
            truths[group][question["answer"]] += 1
            predicted[group][predictions[key]] += 1
    weighted = total = 0.0
    for group, expected in truths.items():
        size = sum(expected.values())
        weighted += size * sum((predicted[group][answer] - count) ** 2 / count for answer, count in expected.items())
        total += size
    return weighted / total / 100 if total else 0.0


def _percent(right: Sequence[bool]) -> float:
    return sum(right) / len(right) * 100 if right else 0.0


def _questions(folder: Location, split: str) -> Iterator[Question]:
    """Read the question file of LLaVA's format, or make the same questions of GQA's own."""
    file = matching_file(folder, "*gqa*.jsonl")
    if file is not None:
        return questions_of_file(file, folder)
    questions = read_json(find_file(folder, "testdev_balanced_questions.json"))
    with_paths = [
        (
            Question(key, f"{row['question']}\n{SHORT_ANSWER}", group=row["types"]["structural"]),
            [f"{row['imageId']}.jpg"],
        )
        for key, row in questions.items()
        if row["isBalanced"]
    ]
    return with_images(folder, with_paths)


BENCHMARK = Benchmark(
    name="gqa",
    title="GQA",
    reference="testdev_balanced_questions.json",
    obtained_from="https://cs.stanford.edu/people/dorarad/gqa/download.html",
    conventions={"bunny": _bunny, LMMS_EVAL: _lmms_eval},
    questions={"bunny": _questions},
    data="testdev_balanced_questions.json (or llava_gqa_testdev_balanced.jsonl) and GQA's images",
    splits=("testdev",),
)
