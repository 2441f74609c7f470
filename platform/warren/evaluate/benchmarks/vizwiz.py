"""VizWiz (arXiv 1802.08218), test split: the server scores; this writes what it takes."""

from collections.abc import Sequence

from warren.errors import DataError
from warren.evaluate.benchmarks.benchmark import Answer, Benchmark, Scores
from warren.evaluate.benchmarks.reading import by_key, find_file, read_json_lines
from warren.evaluate.scorers.vqa import normalise
from warren.storage import Location


def _bunny(answers: Sequence[Answer], reference: Location) -> Scores:
    """Write the normalised answer to every question."""
    questions = read_json_lines(find_file(reference, "*vizwiz*.jsonl", "questions.jsonl", "*.jsonl"))
    given = by_key(answers)
    missing = [question["question_id"] for question in questions if str(question["question_id"]) not in given]
    if missing:
        raise DataError(
            f"VizWiz: no answer to {len(missing)} of {len(questions)} questions, the first is {missing[0]!r}"
        )
    submission = [
        {"image": question["image"], "answer": normalise(given[str(question["question_id"])].text)}
        for question in questions
    ]
    return Scores(len(questions), len(questions), None, submission=submission)


BENCHMARK = Benchmark(
    name="vizwiz",
    title="VizWiz (test)",
    reference="the questions as JSON lines with question_id and image, such as bunny_vizwiz_test.jsonl",
    obtained_from="https://vizwiz.org/tasks-and-datasets/vqa/; submissions: https://eval.ai/web/challenges/challenge-page/2185",
    conventions={"bunny": _bunny},
)
