"""The evaluations of a run in storage. Each has a folder of its own, and is complete once its `report.json` exists.

evaluations/00001000/DATASET/METRIC-DIGEST/predictions.parquet    question, truth and answer of each sample asked
evaluations/00001000/DATASET/METRIC-DIGEST/quarantine.parquet     key, source and reason of each that could not be
evaluations/00001000/DATASET/METRIC-DIGEST/report.md              for people
evaluations/00001000/DATASET/METRIC-DIGEST/report.html            for people, with examples and their images
evaluations/00001000/DATASET/METRIC-DIGEST/report.json            last
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from warren.errors import ConflictError, NotFoundError
from warren.evaluate.evaluation_report import Evaluation, render
from warren.evaluate.identity import Identity
from warren.storage import Location

REPORT = "report.json"
PREDICTIONS = "predictions.parquet"
QUARANTINE = "quarantine.parquet"


@dataclass(frozen=True)
class Evaluations:
    """The evaluations of one run, each in a folder of its own and found by its identity."""

    folder: Location

    def at(self, step: int, identity: Identity) -> Location:
        """Return the folder of one evaluation."""
        return self.folder / f"{step:08d}" / str(identity.options["dataset"]) / identity.name

    def find(self, step: int, identity: Identity) -> Evaluation | None:
        """Return the evaluation with this identity, or None."""
        try:
            return Evaluation.from_json((self.at(step, identity) / REPORT).read_json())
        except NotFoundError:
            return None

    def of_step(self, step: int) -> list[Evaluation]:
        """Return every evaluation of a checkpoint."""
        evaluations = []
        for entry in (self.folder / f"{step:08d}").list():
            if entry.name == REPORT:
                with suppress(KeyError, TypeError):  # written by an earlier version, which left inputs out
                    evaluations.append(Evaluation.from_json(entry.read_json()))
        return evaluations

    def write_quarantine(self, evaluation: Evaluation, rows: Sequence[dict[str, Any]]) -> None:
        """Write which samples could not be asked, also where there are too many of them for a report."""
        (self.at(evaluation.step, evaluation.identity) / QUARANTINE).put_bytes(_parquet(rows))

    def write(self, evaluation: Evaluation, predictions: Sequence[dict[str, Any]], page: bytes = b"") -> Evaluation:
        """Write predictions and the report, and return the stored evaluation, another job's if that was first.

        Args:
            evaluation: The result.
            predictions: Every sample that was asked.
            page: The HTML page, if there is one.
        """
        folder = self.at(evaluation.step, evaluation.identity)
        (folder / PREDICTIONS).put_bytes(_parquet(predictions))
        (folder / "report.md").put_bytes(render(evaluation).encode())
        if page:
            (folder / "report.html").put_bytes(page)
        try:
            (folder / REPORT).create_json(evaluation.to_json())
        # Both jobs measured the same thing; the first report stays, so that readers never see it change.
        except ConflictError:
            return Evaluation.from_json((folder / REPORT).read_json())
        return evaluation


def _parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows)), sink)
    return bytes(sink.getvalue().to_pybytes())
