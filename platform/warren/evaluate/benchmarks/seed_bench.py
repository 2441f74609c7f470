"""SEED-Bench (arXiv 2307.16125): multiple choice about images and video frames."""

from collections.abc import Sequence

from warren.evaluate.benchmarks.benchmark import Answer, Benchmark, Scores
from warren.evaluate.benchmarks.reading import by_key, find_file, read_json, refuse_unknown
from warren.storage import Location


def _bunny(answers: Sequence[Answer], reference: Location) -> Scores:
    """Score as LLaVA's and Bunny's script: the text is the letter; a missing answer is wrong. In percent."""
    data = read_json(find_file(reference, "SEED-Bench.json", "SEED-Bench*.json"))
    questions = data["questions"]
    keys = [str(question["question_id"]) for question in questions]
    given = by_key(answers)
    refuse_unknown(given, keys, "SEED-Bench")
    right = {
        key: key in given and given[key].text == question["answer"]
        for key, question in zip(keys, questions, strict=True)
    }

    def percent(field: str | None = None, value: object = None) -> float:
        """Return the percentage right among the questions whose field has a value."""
        of = [
            right[key] for key, question in zip(keys, questions, strict=True) if not field or question[field] == value
        ]
        return sum(of) / len(of) * 100 if of else 0.0

    names = {number: name for name, number in data["question_type"].items()}
    types = sorted({question["question_type_id"] for question in questions})
    scores = {names[number]: percent("question_type_id", number) for number in types}
    scores |= {"Total": percent(), "image": percent("data_type", "image"), "video": percent("data_type", "video")}
    submission = [{"question_id": key, "prediction": given[key].text} for key in keys if key in given]
    per_question = {key: {"right": value} for key, value in right.items()}
    return Scores(len(keys), len(given), scores, per_question, submission=submission)


BENCHMARK = Benchmark(
    name="seed",
    title="SEED-Bench",
    reference="SEED-Bench.json",
    obtained_from="https://huggingface.co/datasets/AILab-CVC/SEED-Bench",
    conventions={"bunny": _bunny},
)
