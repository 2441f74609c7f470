"""MM-Vet (arXiv 2308.02490): free answers that a judge model scores; this writes what its server takes."""

from collections.abc import Iterator

from warren.evaluate.benchmarks.benchmark import Answers, Benchmark, Scores
from warren.evaluate.benchmarks.question import Question
from warren.evaluate.benchmarks.question_files import matching_file, questions_of_file, required_file, with_images
from warren.evaluate.benchmarks.reading import by_key, read_json
from warren.storage import Location

_PREFIX = "v1_"


def _bunny(answers: Answers, reference: Location) -> Scores:
    """Write one object of id and text."""
    given = by_key(answers)
    submission = {f"{_PREFIX}{key}": answer.text for key, answer in given.items()}
    return Scores(len(given), len(given), None, submission=submission)


def _questions(folder: Location, split: str) -> Iterator[Question]:
    """Read Bunny's question file, or MM-Vet's own."""
    file = matching_file(folder, "*mm-vet*.jsonl", "*mmvet*.jsonl")
    if file is not None:
        return questions_of_file(file, folder)
    rows = read_json(required_file(folder, "mm-vet.json"))
    asked = [
        (Question(key.removeprefix(_PREFIX), row["question"], group=",".join(row["capability"])), [row["imagename"]])
        for key, row in rows.items()
    ]
    return with_images(folder, asked)


BENCHMARK = Benchmark(
    name="mmvet",
    title="MM-Vet",
    reference="nothing: the ids are in the answers (give the answers file itself)",
    obtained_from="https://github.com/yuweihao/MM-Vet; scores: https://huggingface.co/spaces/whyu/MM-Vet_Evaluator",
    conventions={"bunny": _bunny},
    questions={"bunny": _questions},
    data="mm-vet.json (or bunny-mm-vet.jsonl) and images/",
    max_new_tokens=1024,
)
