"""OCRBench (arXiv 2305.07895): a thousand questions about text in images; the answer must contain the truth."""

from warren.evaluate.benchmarks.table_benchmark import TableTask, table_benchmark
from warren.evaluate.benchmarks.table_records import Record

_FORMULAS = "HME100k"  # compared without spaces and with case
_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}


def _points(answer: str, record: Record) -> float:
    truths = record["answer"] if isinstance(record["answer"], list) else [record["answer"]]
    normal = _without_spaces if record["dataset"] == _FORMULAS else _folded
    return float(any(normal(truth) in normal(answer) for truth in truths))


def _without_spaces(text: str) -> str:
    return text.strip().replace("\n", " ").replace(" ", "")


def _folded(text: str) -> str:
    """Return a text in lower case, with plain characters in place of full-width ones."""
    return text.translate(_FULL_WIDTH).lower().strip().replace("\n", " ")


BENCHMARK = table_benchmark(
    "ocrbench",
    TableTask(
        title="OCRBench",
        files="test",
        text=lambda record: record["question"].strip(),
        truth=lambda record: ", ".join(record["answer"]) if isinstance(record["answer"], list) else record["answer"],
        points=_points,
        metric="ocrbench_accuracy",
        group=lambda record: str(record["question_type"]),
    ),
    "https://huggingface.co/datasets/echo840/OCRBench",
    max_new_tokens=128,
    split="test",
)
