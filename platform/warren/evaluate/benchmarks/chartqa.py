"""ChartQA (arXiv 2203.10244): questions about charts; numbers may be off by 5 %."""

from warren.evaluate.benchmarks.table_benchmark import TableTask, table_benchmark
from warren.evaluate.scorers.lmms_eval import is_within_five_percent

BENCHMARK = table_benchmark(
    "chartqa",
    TableTask(
        title="ChartQA",
        files="test",
        text=lambda record: f"{record['question']}\nAnswer the question with a single word.",
        truth=lambda record: str(record["answer"]),
        points=lambda answer, record: float(is_within_five_percent(answer, record["answer"])),
        metric="relaxed_overall",
        group=lambda record: "human" if record["type"] == "human_test" else "augmented",
        group_name="relaxed_{}_split",
    ),
    "https://huggingface.co/datasets/lmms-lab/ChartQA",
    max_new_tokens=16,
    split="test",
)
