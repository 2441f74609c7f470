"""AI2D (arXiv 1603.07396): multiple choice about science diagrams."""

import re

from warren.evaluate.benchmarks.question_files import LETTER, lettered
from warren.evaluate.benchmarks.table_benchmark import TableTask, table_benchmark
from warren.evaluate.benchmarks.table_records import Record
from warren.evaluate.scorers.lmms_eval import same_but_for_punctuation

_LETTER_FIRST = re.compile(r"\s*([A-Z])\.")


def _points(answer: str, record: Record) -> float:
    first = _LETTER_FIRST.match(answer)
    return float(same_but_for_punctuation(first[1] if first else answer, _truth(record)))


def _truth(record: Record) -> str:
    return chr(ord("A") + int(record["answer"]))


BENCHMARK = table_benchmark(
    "ai2d",
    TableTask(
        title="AI2D",
        files="test",
        text=lambda record: f"{lettered(record['question'], record['options'])}\n{LETTER}",
        truth=_truth,
        points=_points,
        options=lambda record: record["options"],
        metric="exact_match",
    ),
    "https://huggingface.co/datasets/lmms-lab/ai2d",
    max_new_tokens=16,
    split="test",
)
