"""VQA v2 (arXiv 1612.00837), test splits: the server scores; this writes what it takes."""

from collections.abc import Sequence

from warren.evaluate.benchmarks.benchmark import Answer, Benchmark, Scores
from warren.evaluate.benchmarks.reading import by_key, find_file, read_json_lines
from warren.evaluate.scorers.vqa import normalise
from warren.storage import Location


def _bunny(answers: Sequence[Answer], reference: Location) -> Scores:
    """Write a line for every question of the whole test split; those that were not asked get an empty answer."""
    questions = read_json_lines(find_file(reference, "*vqav2*test2015*.jsonl", "*.jsonl"))
    given = by_key(answers)
    keys = [question["question_id"] for question in questions]
    submission = [
        {"question_id": key, "answer": normalise(given[str(key)].text) if str(key) in given else ""} for key in keys
    ]
    num_answered = sum(str(key) in given for key in keys)
    return Scores(len(keys), num_answered, None, submission=submission)


BENCHMARK = Benchmark(
    name="vqav2",
    title="VQA v2 (test-dev, test-std)",
    reference="the questions of the whole test split as JSON lines, such as bunny_vqav2_mscoco_test2015.jsonl",
    obtained_from="https://visualqa.org/download.html; submissions: https://eval.ai/web/challenges/challenge-page/830",
    conventions={"bunny": _bunny},
)
