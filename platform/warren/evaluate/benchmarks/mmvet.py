"""MM-Vet (arXiv 2308.02490): free answers that a judge model scores; this writes what its server takes."""

from collections.abc import Sequence

from warren.evaluate.benchmarks.benchmark import Answer, Benchmark, Scores
from warren.evaluate.benchmarks.reading import by_key
from warren.storage import Location


def _bunny(answers: Sequence[Answer], reference: Location) -> Scores:
    """Write one object of id and text."""
    given = by_key(answers)
    submission = {f"v1_{key}": answer.text for key, answer in given.items()}
    return Scores(len(given), len(given), None, submission=submission)


BENCHMARK = Benchmark(
    name="mmvet",
    title="MM-Vet",
    reference="nothing: the ids are in the answers (give the answers file itself)",
    obtained_from="https://github.com/yuweihao/MM-Vet; scores: https://huggingface.co/spaces/whyu/MM-Vet_Evaluator",
    conventions={"bunny": _bunny},
)
