"""BLINK (arXiv 2404.12390), validation split: multiple choice about one to four images."""

import re
import string

from warren.evaluate.benchmarks.table_benchmark import TableTask, table_benchmark
from warren.evaluate.benchmarks.table_records import Record

_SHORT_CHARS = 4


def _text(record: Record) -> str:
    letters = ", ".join(string.ascii_uppercase[: len(record["choices"])])
    note = f"Note: You only need to respond with {letters} without providing any additional information."
    return f"{note}\n{record['prompt']}"


def _points(answer: str, record: Record) -> float:
    letters = string.ascii_uppercase[: len(record["choices"])] or string.ascii_uppercase
    return float(_letter(answer.strip(), letters) == _truth(record))


def _truth(record: Record) -> str:
    return str(record["answer"]).strip("()")


def _letter(text: str, letters: str) -> str:
    """Return a letter that is the whole first line, or is said to be the answer, or is in brackets, or stands first."""
    line = text.split("\n", 1)[0].strip()
    whole = re.match(rf"\(?([{letters}])\)?[.\s:,)]*$", line, re.IGNORECASE)
    if whole and len(line) <= _SHORT_CHARS:
        return whole[1].upper()
    stated = re.findall(rf"answers?(?:\s+is)?\s*[:\-]?\s*\(?([{letters}])\)?(?![A-Za-z])", text, re.IGNORECASE)
    last = stated or re.findall(rf"\(([{letters}])\)", text)
    if last:
        return str(last[-1]).upper()
    first = re.match(rf"[(\s]*([{letters}])", text, re.IGNORECASE)
    return first[1].upper() if first else ""


BENCHMARK = table_benchmark(
    "blink",
    TableTask(
        title="BLINK (validation)",
        files="val",
        key="idx",
        text=_text,
        truth=_truth,
        points=_points,
        options=lambda record: record["choices"],
        metric="blink_acc",
        group=lambda record: str(record["sub_task"]),
        images=("image_1", "image_2", "image_3", "image_4"),
    ),
    "https://huggingface.co/datasets/BLINK-Benchmark/BLINK",
    max_new_tokens=1024,
    split="val",
)
