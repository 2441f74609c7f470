"""SEED-Bench (arXiv 2307.16125): multiple choice about images and video frames."""

from collections.abc import Iterator
from typing import Any

from warren.evaluate.benchmarks.benchmark import Answers, Benchmark, Scores
from warren.evaluate.benchmarks.question import Question
from warren.evaluate.benchmarks.question_files import LETTER, lettered, matching_file, questions_of_file, with_images
from warren.evaluate.benchmarks.reference_files import by_key, find_file, read_json, refuse_unknown
from warren.evaluate.measures import share
from warren.evaluate.scorers.lmms_eval import NAME as LMMS_EVAL
from warren.evaluate.scorers.lmms_eval import complete
from warren.evaluate.scorers.vlmevalkit import NAME as VLMEVALKIT
from warren.evaluate.scorers.vlmevalkit import chosen_option
from warren.storage import Location


def _bunny(answers: Answers, reference: Location) -> Scores:
    """Score as LLaVA's and Bunny's script: the text is the letter; a missing answer is wrong. In percent."""
    data = read_json(find_file(reference, "SEED-Bench.json", "SEED-Bench*.json"))
    questions = [row for row in data["questions"] if str(row["question_id"]) not in answers.failed]
    keys = [str(question["question_id"]) for question in questions]
    answered = by_key(answers)
    refuse_unknown(answered, keys, "SEED-Bench")
    right = {
        key: key in answered and answered[key].text == question["answer"]
        for key, question in zip(keys, questions, strict=True)
    }

    def right_of(field: str, value: object) -> dict[str, bool]:
        """Return what is right among the questions whose field has a value."""
        return {key: right[key] for key, question in zip(keys, questions, strict=True) if question[field] == value}

    names = {number: name for name, number in data["question_type"].items()}
    types = sorted({question["question_type_id"] for question in questions})
    tables = {names[number]: right_of("question_type_id", number) for number in types} | {"Total": right}
    tables |= {kind: right_of("data_type", kind) for kind in ("image", "video")}
    scores = {name: sum(of.values()) / len(of) * 100 if of else 0.0 for name, of in tables.items()}
    measures = [share(name, of, 100) for name, of in tables.items() if of]
    submission = [{"question_id": key, "prediction": answered[key].text} for key in keys if key in answered]
    truths = {str(question["question_id"]): question["answer"] for question in questions}
    per_question = {key: {"truth": truths[key], "right": value} for key, value in right.items()}
    return Scores(len(keys), len(answered), scores, per_question, submission=submission, measures=measures)


def _lmms_eval(answers: Answers, reference: Location) -> Scores:
    """Score as lmms-eval's task `seedbench`: the first character, in any case."""
    data = read_json(find_file(reference, "SEED-Bench.json", "SEED-Bench*.json"))
    questions = {str(row["question_id"]): row for row in data["questions"]}
    answered = complete(answers, questions, "SEED-Bench")
    right = {
        key: answer.text.strip()[:1].lower() == questions[key]["answer"].lower() for key, answer in answered.items()
    }
    tables = {"seed_all": right}
    for kind in ("image", "video"):
        tables[f"seed_{kind}"] = {key: value for key, value in right.items() if questions[key]["data_type"] == kind}
    measures = [share(name, of) for name, of in tables.items() if of]
    per_question = {key: {"truth": questions[key]["answer"], "right": value} for key, value in right.items()}
    scores = {measure.name: measure.value for measure in measures}
    return Scores(len(questions), len(answered), scores, per_question, measures=measures)


def _vlmevalkit(answers: Answers, reference: Location) -> Scores:
    """Score as VLMEvalKit's dataset `SEEDBench_IMG` without a judge model: questions about images only."""
    data = read_json(find_file(reference, "SEED-Bench.json", "SEED-Bench*.json"))
    rows = {str(row["question_id"]): row for row in data["questions"]}
    images = {key: row for key, row in rows.items() if row["data_type"] == "image"}
    answered = complete(answers, images, "SEED-Bench", rows, VLMEVALKIT)
    right = {
        key: chosen_option(answer.text, {letter: str(images[key][f"choice_{letter.lower()}"]) for letter in "ABCD"})
        == images[key]["answer"]
        for key, answer in answered.items()
    }
    names = {number: name for name, number in data["question_type"].items()}
    tables = {"Overall": right}
    for key, value in right.items():
        tables.setdefault(f"category/{names[images[key]['question_type_id']]}", {})[key] = value
    image_of = {key: str(row["data_id"]) for key, row in images.items()}
    measures = [share(name, of, 1, image_of) for name, of in tables.items()]
    by_category = {measure.name.partition("/")[2]: measure.value for measure in measures[1:]}
    scores = {"Overall": measures[0].value, "category": by_category}
    per_question = {key: {"truth": images[key]["answer"], "right": value} for key, value in right.items()}
    return Scores(len(images), len(answered), scores, per_question, measures=measures)


def _questions(folder: Location, split: str) -> Iterator[Question]:
    """Read the question file of LLaVA's format, or make the same questions of SEED-Bench.json."""
    data = read_json(find_file(folder, "SEED-Bench.json", "SEED-Bench*.json"))
    kinds = {str(row["question_id"]): row["data_type"] for row in data["questions"]}
    file = matching_file(folder, "*seed*bench*.jsonl")
    names = {number: name for name, number in data["question_type"].items()}
    questions = (
        questions_of_file(file, folder)
        if file
        else with_images(
            folder, [_asked(row, names) for row in data["questions"] if split in ("all", row["data_type"])]
        )
    )
    return (question for question in questions if split in ("all", kinds.get(question.key)))


def _asked(row: dict[str, Any], names: dict[int, str]) -> tuple[Question, list[str]]:
    """Return a question and its image; of a video that is the middle frame, as Bunny's script extracts it."""
    kind, key = row["question_type_id"], str(row["question_id"])
    text = lettered(row["question"], [row[f"choice_{letter}"] for letter in "abcd"])
    path = str(row["data_id"]) if row["data_type"] == "image" else f"{kind}_{key}.png"
    return Question(key, f"{text}\n{LETTER}", group=names[kind]), [path]


BENCHMARK = Benchmark(
    name="seed",
    title="SEED-Bench",
    reference="SEED-Bench.json",
    obtained_from="https://huggingface.co/datasets/AILab-CVC/SEED-Bench",
    conventions={"bunny": _bunny, LMMS_EVAL: _lmms_eval, VLMEVALKIT: _vlmevalkit},
    questions={"bunny": _questions},
    data="SEED-Bench.json, SEED-Bench-image/ and the middle frames of videos, SEED-Bench-video-image/TYPE_ID.png",
    splits=("all", "image", "video"),
    submission_format=".jsonl",
)
