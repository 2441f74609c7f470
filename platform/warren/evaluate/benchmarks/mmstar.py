"""MMStar (arXiv 2403.20330): multiple choice that cannot be answered without the image; the mean of eighteen means."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from warren.evaluate.benchmarks.benchmark import Scores
from warren.evaluate.benchmarks.question_files import LETTER
from warren.evaluate.benchmarks.table_benchmark import Points, TableTask, table_benchmark
from warren.evaluate.benchmarks.table_records import Record
from warren.evaluate.measures import Measure, blocks, summed
from warren.evaluate.scorers.lmms_eval import extracted_letter


@dataclass(frozen=True)
class _MMStar(TableTask):
    """Every detailed category weighs the same, however many questions it has."""

    def scores(self, points: Points, records: Mapping[str, Record], measures: Sequence[Measure]) -> Scores:
        """Report the mean of the detailed categories' means, of all and of each category."""
        of_category: dict[str, dict[str, float]] = defaultdict(dict)
        for key, value in points.items():
            of_category[records[key]["category"]][key] = value
        tables = {"average": points} | dict(sorted(of_category.items()))
        return super().scores(points, records, [_mean_of_means(name, of, records) for name, of in tables.items()])


def _mean_of_means(name: str, points: Points, records: Mapping[str, Record]) -> Measure:
    parts: dict[str, dict[str, tuple[float, float]]] = defaultdict(dict)
    for key, value in points.items():
        parts[records[key]["l2_category"]][key] = (value, 1.0)
    return summed(name, "mean_ratio", blocks([parts[part] for part in sorted(parts)]))


BENCHMARK = table_benchmark(
    "mmstar",
    _MMStar(
        title="MMStar",
        files="mmstar",
        key="index",
        text=lambda record: f"{record['question'].strip()}\n{LETTER.removesuffix('.')}",
        truth=lambda record: str(record["answer"]),
        points=lambda answer, record: float(extracted_letter(answer, "ABCD") == record["answer"].strip().upper()),
        metric="average",
        group=lambda record: str(record["category"]),
    ),
    "https://huggingface.co/datasets/Lin-Chen/MMStar",
    max_new_tokens=128,
    split="val",
)
