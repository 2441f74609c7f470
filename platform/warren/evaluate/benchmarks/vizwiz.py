"""VizWiz (arXiv 1802.08218), test split: the server scores; this writes what it takes."""

from collections.abc import Iterator

from warren.errors import ConfigError, DataError
from warren.evaluate.benchmarks.benchmark import Answers, Benchmark, Scores
from warren.evaluate.benchmarks.question import Question
from warren.evaluate.benchmarks.question_files import SHORT_ANSWER, questions_of_file, required_file, with_images
from warren.evaluate.benchmarks.reference_files import by_key, find_file, read_json, read_json_lines
from warren.evaluate.scorers.lmms_eval import NAME as LMMS_EVAL
from warren.evaluate.scorers.lmms_eval import score_soft_accuracy
from warren.evaluate.scorers.vqa import normalise
from warren.storage import Location

_UNANSWERABLE = "When the provided information is insufficient, respond with 'Unanswerable'."


def _bunny(answers: Answers, reference: Location) -> Scores:
    """Write the normalised answer to every question."""
    questions = read_json_lines(find_file(reference, "*vizwiz*.jsonl", "questions.jsonl", "*.jsonl"))
    answered = by_key(answers)
    missing = [question["question_id"] for question in questions if str(question["question_id"]) not in answered]
    missing = [key for key in missing if str(key) not in answers.failed]
    if missing:
        raise DataError(
            f"VizWiz: no answer to {len(missing)} of {len(questions)} questions, the first is {missing[0]!r}"
        )
    submission = [
        {"image": question["image"], "answer": normalise(answered[str(question["question_id"])].text)}
        for question in questions
        if str(question["question_id"]) in answered
    ]
    return Scores(len(questions), len(submission), None, submission=submission)


def _lmms_eval(answers: Answers, reference: Location) -> Scores:
    """Score as lmms-eval's task `vizwiz_vqa_val`: soft accuracy over people's answers."""
    rows = read_json(required_file(reference, "val.json", "*.json"))
    humans = {str(row["image"]): [one["answer"] for one in row.get("answers", ())] for row in rows}
    return score_soft_accuracy(answers, humans, {key: key for key in humans}, "VizWiz", normalise)


def _lmms_questions(folder: Location, split: str) -> Iterator[Question]:
    """Ask as lmms-eval does, from VizWiz's own file of a split."""
    rows = read_json(required_file(folder, f"{split}.json"))
    with_paths = [
        (Question(row["image"], f"{row['question'].capitalize()}\n{_UNANSWERABLE}\n{SHORT_ANSWER}"), [row["image"]])
        for row in rows
    ]
    return with_images(folder, with_paths)


def _questions(folder: Location, split: str) -> Iterator[Question]:
    """Read the question file of LLaVA's format, which exists for the test split."""
    if split != "test":
        raise ConfigError(f"VizWiz {split} has no questions of LLaVA's format; ask with --convention lmms-eval")
    return questions_of_file(required_file(folder, "*vizwiz*.jsonl", "questions.jsonl"), folder)


BENCHMARK = Benchmark(
    name="vizwiz",
    title="VizWiz",
    reference="bunny: the questions, such as bunny_vizwiz_test.jsonl, for the server; lmms-eval: val.json",
    obtained_from="https://vizwiz.org/tasks-and-datasets/vqa/; submissions: https://eval.ai/web/challenges/challenge-page/2185",
    conventions={"bunny": _bunny, LMMS_EVAL: _lmms_eval},
    questions={"bunny": _questions, LMMS_EVAL: _lmms_questions},
    data="llava_vizwiz.jsonl or bunny_vizwiz_test.jsonl (lmms-eval: test.json or val.json), and VizWiz's images",
    splits=("test", "val"),
)
