"""MMBench (arXiv 2307.06281): the server scores; this writes the sheet that it takes."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from warren.errors import DataError
from warren.evaluate.benchmarks.benchmark import Answer, Benchmark, Scores
from warren.evaluate.benchmarks.reading import by_key, find_file, refuse_unknown
from warren.storage import Location

_LEFT_OUT = {"hint", "category", "source", "image", "comment", "l2-category"}
_PREDICTION, _BEFORE = "prediction", 6
_MAX_FIELD_CHARS = 1 << 30  # a field holds a whole image


def _bunny(answers: Sequence[Answer], reference: Location) -> Scores:
    """Write the table without images and categories, and with a column of raw answers; empty where there is none."""
    columns, rows = _read(find_file(reference, "mmbench_*.tsv", "*.tsv"))
    given = by_key(answers)
    refuse_unknown(given, (str(row["index"]) for row in rows), "MMBench")
    kept = [column for column in columns if column not in _LEFT_OUT]
    kept.insert(_BEFORE, _PREDICTION)
    num_answered = 0
    sheet = []
    for row in rows:
        answer = given.get(str(row["index"]))
        num_answered += answer is not None
        sheet.append([{**row, _PREDICTION: (answer.text or None) if answer else None}[column] for column in kept])
    return Scores(len(rows), num_answered, None, submission={"columns": kept, "rows": sheet})


def _read(file: Location) -> tuple[list[str], list[dict[str, Any]]]:
    """Read the published table; empty fields are None and the index is a number."""
    csv.field_size_limit(_MAX_FIELD_CHARS)
    reader = csv.DictReader(io.StringIO(file.read_bytes().decode()), delimiter="\t")
    columns = list(reader.fieldnames or ())
    if not {"index", "question", "A", "B"} <= set(columns):
        raise DataError(f"{file}: an MMBench table has columns index, question, A, B; found {', '.join(columns)}")
    rows = [{column: row[column] or None for column in columns} for row in reader]
    return columns, [{**row, "index": int(row["index"] or 0)} for row in rows]


BENCHMARK = Benchmark(
    name="mmbench",
    title="MMBench (en, cn; dev, test)",
    reference="the legacy table, such as mmbench_dev_20230712.tsv",
    obtained_from="https://github.com/open-compass/MMBench; scores: https://mmbench.opencompass.org.cn",
    conventions={"bunny": _bunny},
)
