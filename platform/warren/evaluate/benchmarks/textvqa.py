"""TextVQA (arXiv 1904.08920): questions about text in images; ten human answers each."""

import re
from collections.abc import Iterator
from dataclasses import replace

from warren.errors import DataError
from warren.evaluate.benchmarks.benchmark import Answers, Benchmark, Scores
from warren.evaluate.benchmarks.question import Question, number_repeats, published_id
from warren.evaluate.benchmarks.question_files import SHORT_ANSWER, questions_of_file, required_file, with_images
from warren.evaluate.benchmarks.reference_files import find_file, read_json
from warren.evaluate.measures import mean
from warren.evaluate.scorers.anls import anls
from warren.evaluate.scorers.lmms_eval import NAME as LMMS_EVAL
from warren.evaluate.scorers.vqa import normalise, soft_accuracies
from warren.storage import Location

_OCR = "Reference OCR token:"
_TOKENS_FIRST = re.compile(r"OCR tokens: .*?Question: (.*?) Short answer:", re.DOTALL)


def _bunny(answers: Answers, reference: Location) -> Scores:
    """Score as LLaVA's and Bunny's script: soft accuracy after the VQA normaliser, over the answers that are there."""
    rows = read_json(find_file(reference, "TextVQA_*_val.json", "annotations.json", "*.json"))["data"]
    humans = {(row["image_id"], row["question"].lower()): row["answers"] for row in rows}
    per_question, images = {}, {}
    for answer in answers:
        question, image = _question(answer.prompt), published_id(answer.key)
        if (image, question) not in humans:
            raise DataError(f"TextVQA: image {image!r} has no question {question[:80]!r} in this reference")
        prediction = normalise(answer.text)
        truths = humans[image, question]
        score = soft_accuracies(truths).get(prediction, 0.0)
        name = image if image not in per_question else f"{image}: {question}"
        images[name] = image
        per_question[name] = {
            "key": answer.key,
            "prediction": prediction,
            "truth": max(soft_accuracies(truths), key=lambda text: soft_accuracies(truths)[text]),
            "score": score,
            "stvqa_accuracy": float(prediction in map(normalise, truths)),
            "stvqa_anls": anls(answer.text, truths),
        }
    points = {name: float(row["score"]) for name, row in per_question.items()}  # type: ignore[arg-type]
    scores = {"percent": 100 * sum(points.values()) / len(points)}
    return Scores(len(humans), len(points), scores, per_question, measures=[mean("percent", points, 100, images)])


def _lmms_eval(answers: Answers, reference: Location) -> Scores:
    """Score as lmms-eval's task `textvqa_val`: the same soft accuracy, as a share."""
    scores = _bunny(answers, reference)
    if scores.num_answered + len(answers.failed) < scores.num_questions:
        raise DataError(
            f"TextVQA: {scores.num_answered} answers to {scores.num_questions} questions; lmms-eval has no rule for "
            "missing answers, so every question needs one"
        )
    points = {name: float(row["score"]) for name, row in scores.per_question.items()}
    measure = replace(scores.measures[0], name="exact_match", scale=1.0)
    return replace(scores, scores={"exact_match": sum(points.values()) / len(points)}, measures=[measure])


def _lmms_questions(folder: Location, split: str) -> Iterator[Question]:
    """Ask as lmms-eval does, from TextVQA's own file: the question without OCR tokens."""
    rows = read_json(find_file(folder, "TextVQA_*_val.json", "annotations.json"))["data"]
    with_paths = [
        (Question(row["image_id"], f"{row['question'].capitalize()}\n{SHORT_ANSWER}"), [f"{row['image_id']}.jpg"])
        for row in rows
    ]
    return number_repeats(with_images(folder, with_paths))


def _question(prompt: str) -> str:
    """Take the question out of the prompt, which may name OCR tokens before or behind it."""
    framed = _TOKENS_FIRST.match(prompt)
    if framed:
        return framed[1].lower()
    lines = prompt.split("\n")
    return lines[1 if len(lines) == 3 and prompt.startswith(_OCR) else 0].lower()


def _questions(folder: Location, split: str) -> Iterator[Question]:
    """Read the question file of LLaVA's format, which names OCR tokens beside each question."""
    return number_repeats(questions_of_file(required_file(folder, "*textvqa*.jsonl"), folder))


BENCHMARK = Benchmark(
    name="textvqa",
    title="TextVQA",
    reference="TextVQA_0.5.1_val.json",
    obtained_from="https://textvqa.org/dataset/",
    conventions={"bunny": _bunny, LMMS_EVAL: _lmms_eval},
    questions={"bunny": _questions, LMMS_EVAL: _lmms_questions},
    data="llava_textvqa_val_v051_ocr.jsonl (lmms-eval's prompts: TextVQA_0.5.1_val.json) and train_images/",
    splits=("val",),
)
