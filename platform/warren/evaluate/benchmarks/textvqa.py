"""TextVQA (arXiv 1904.08920): questions about text in images; ten human answers each."""

import re
from collections.abc import Sequence

from warren.errors import DataError
from warren.evaluate.benchmarks.benchmark import Answer, Benchmark, Scores
from warren.evaluate.benchmarks.reading import find_file, read_json
from warren.evaluate.scorers.anls import anls
from warren.evaluate.scorers.vqa import normalise, soft_accuracies
from warren.storage import Location

_OCR = "Reference OCR token:"
_TOKENS_FIRST = re.compile(r"OCR tokens: .*?Question: (.*?) Short answer:", re.DOTALL)


def _bunny(answers: Sequence[Answer], reference: Location) -> Scores:
    """Score as LLaVA's and Bunny's script: soft accuracy after the VQA normaliser, over the answers that are there."""
    rows = read_json(find_file(reference, "TextVQA_*_val.json", "annotations.json", "*.json"))["data"]
    humans = {(row["image_id"], row["question"].lower()): row["answers"] for row in rows}
    per_question = {}
    for answer in answers:
        question = _question(answer.prompt)
        if (answer.key, question) not in humans:
            raise DataError(f"TextVQA: image {answer.key!r} has no question {question[:80]!r} in this reference")
        prediction = normalise(answer.text)
        truths = humans[answer.key, question]
        score = soft_accuracies(truths).get(prediction, 0.0)
        name = answer.key if answer.key not in per_question else f"{answer.key}: {question}"
        per_question[name] = {
            "prediction": prediction,
            "score": score,
            "stvqa_accuracy": float(prediction in map(normalise, truths)),
            "stvqa_anls": anls(answer.text, truths),
        }
    points = [float(row["score"]) for row in per_question.values()]  # type: ignore[arg-type]
    scores = {"percent": 100 * sum(points) / len(points)}
    return Scores(len(humans), len(points), scores, per_question)


def _question(prompt: str) -> str:
    """Take the question out of the prompt, which may name OCR tokens before or behind it."""
    framed = _TOKENS_FIRST.match(prompt)
    if framed:
        return framed[1].lower()
    lines = prompt.split("\n")
    return lines[1 if len(lines) == 3 and prompt.startswith(_OCR) else 0].lower()


BENCHMARK = Benchmark(
    name="textvqa",
    title="TextVQA",
    reference="TextVQA_0.5.1_val.json",
    obtained_from="https://textvqa.org/dataset/",
    conventions={"bunny": _bunny},
)
