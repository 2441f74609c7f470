"""VQA v2 (arXiv 1612.00837), test splits: the server scores; this writes what it takes."""

from collections.abc import Iterator

from warren.evaluate.benchmarks.benchmark import Answers, Benchmark, Scores
from warren.evaluate.benchmarks.question import Question
from warren.evaluate.benchmarks.question_files import SHORT_ANSWER, questions_of_file, required_file, with_images
from warren.evaluate.benchmarks.reference_files import by_key, find_file, read_json, read_json_lines
from warren.evaluate.scorers.lmms_eval import NAME as LMMS_EVAL
from warren.evaluate.scorers.lmms_eval import score_soft_accuracy
from warren.evaluate.scorers.vqa import normalise, normalise_words
from warren.storage import Location


def _bunny(answers: Answers, reference: Location) -> Scores:
    """Write a line for every question of the whole test split; those that were not asked get an empty answer."""
    questions = read_json_lines(find_file(reference, "*vqav2*test2015*.jsonl", "*.jsonl"))
    answered = by_key(answers)
    keys = [question["question_id"] for question in questions]
    submission = [
        {"question_id": key, "answer": normalise(answered[str(key)].text) if str(key) in answered else ""}
        for key in keys
    ]
    num_answered = sum(str(key) in answered for key in keys)
    return Scores(len(keys), num_answered, None, submission=submission)


def _lmms_eval(answers: Answers, reference: Location) -> Scores:
    """Score as lmms-eval's task `vqav2_val`: soft accuracy, after the normaliser of the first challenge."""
    rows = read_json(required_file(reference, "v2_mscoco_val2014_annotations.json", "*annotations*.json"))[
        "annotations"
    ]
    humans = {str(row["question_id"]): [one["answer"] for one in row["answers"]] for row in rows}
    images = {str(row["question_id"]): str(row["image_id"]) for row in rows}
    return score_soft_accuracy(answers, humans, images, "VQA v2", normalise_words)


def _image(number: int) -> str:
    return f"COCO_val2014_{number:012d}.jpg"


def _questions(folder: Location, split: str) -> Iterator[Question]:
    """Read the question file of a split in LLaVA's format."""
    if split == "val":
        rows = read_json(required_file(folder, "v2_OpenEnded_mscoco_val2014_questions.json"))["questions"]
        with_paths = [
            (Question(str(row["question_id"]), f"{row['question']}\n{SHORT_ANSWER}"), [_image(row["image_id"])])
            for row in rows
        ]
        return with_images(folder, with_paths)
    name = {"test-dev": "*vqav2*test-dev*.jsonl", "test": "*vqav2*test2015*.jsonl"}[split]
    return questions_of_file(required_file(folder, name), folder)


BENCHMARK = Benchmark(
    name="vqav2",
    title="VQA v2",
    reference="bunny: bunny_vqav2_mscoco_test2015.jsonl, for the server; lmms-eval: v2_mscoco_val2014_annotations.json",
    obtained_from="https://visualqa.org/download.html; submissions: https://eval.ai/web/challenges/challenge-page/830",
    conventions={"bunny": _bunny, LMMS_EVAL: _lmms_eval},
    questions={"bunny": _questions},
    data="bunny_vqav2_mscoco_test-dev2015.jsonl, ..._test2015.jsonl or v2_OpenEnded_..._questions.json; COCO's images",
    splits=("test-dev", "test", "val"),
)
