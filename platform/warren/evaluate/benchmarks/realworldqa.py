"""RealWorldQA: questions about photographs, most of them multiple choice."""

from warren.evaluate.benchmarks.table_benchmark import TableTask, table_benchmark
from warren.evaluate.benchmarks.table_records import Record
from warren.evaluate.scorers.lmms_eval import extracted_letter

_LETTERS = "ABCD"


def _points(answer: str, record: Record) -> float:
    truth = record["answer"].strip()
    if truth.upper() in tuple(_LETTERS):
        return float(extracted_letter(answer, _LETTERS) == truth.upper())
    return float(answer.lower().strip().rstrip(".") == truth.lower())


BENCHMARK = table_benchmark(
    "realworldqa",
    TableTask(
        title="RealWorldQA",
        files="test",
        text=lambda record: record["question"].strip(),
        truth=lambda record: str(record["answer"]),
        points=_points,
        metric="exact_match",
    ),
    "https://huggingface.co/datasets/lmms-lab/RealWorldQA",
    max_new_tokens=16,
    split="test",
)
