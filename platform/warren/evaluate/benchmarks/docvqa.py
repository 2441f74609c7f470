"""DocVQA (arXiv 2007.00398), validation split: questions about documents, scored by edit distance."""

from warren.evaluate.benchmarks.question_files import SHORT_ANSWER
from warren.evaluate.benchmarks.table_benchmark import TableTask, table_benchmark
from warren.evaluate.scorers.lmms_eval import document_anls

BENCHMARK = table_benchmark(
    "docvqa",
    TableTask(
        title="DocVQA (validation)",
        files="validation",
        key="questionId",
        text=lambda record: f"{record['question']}\n{SHORT_ANSWER}",
        truth=lambda record: ", ".join(record["answers"]),
        points=lambda answer, record: document_anls(answer, record["answers"]),
        metric="anls",
        is_share=False,
        cluster=lambda record: str(record.get("docId") or record["questionId"]),
    ),
    "https://huggingface.co/datasets/lmms-lab/DocVQA",
    max_new_tokens=32,
    split="validation",
)
