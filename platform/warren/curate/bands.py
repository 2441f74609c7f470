"""The step `rank_band`: the samples whose rank by a score is in a band."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from warren.curate.array_files import ArrayFile, Arrays
from warren.curate.ranking import band_ranks, keys_in_ranks, rows_of, scores_of, sorted_keys
from warren.curate.report import ScoreTable
from warren.curate.row_mask import RowSet, StoredRows
from warren.curate.tasks import NumberedTask, Runner, Workspace, finish
from warren.storage import Location

_SHOWN = 1_000_000  # of more scores than this, a histogram shows every 1,024th


def keep_band(
    run: Runner,
    work: Workspace,
    scored: Sequence[Location],
    column: str,
    band: tuple[float, float],
    selected: Location,
    num_rows: int,
) -> RowSet:
    """Return the selected samples whose rank by a score is in a band; those without a score have no rank.

    Args:
        scored: Files of `row` and the column with the score.
        selected: The stored set of selected samples.
        num_rows: Rows of all datasets.
    """
    files = finish(run, work / "keys", [_Keys(n, file, column, selected) for n, file in enumerate(scored)])
    first, end = band_ranks(band, sum(file.rows("keys") for file in files))
    kept = RowSet.empty(num_rows)
    for keys in keys_in_ranks(files, first, end):
        kept.add(rows_of(keys))
    return kept


def band_scores(work: Workspace, by: str, band: tuple[float, float]) -> ScoreTable:
    """Return all scores and the limits of a band, from the results of `keep_band` in the workspace."""
    files = [ArrayFile(location) for location in (work / "keys").folder.list()]
    count = sum(file.rows("keys") for file in files)
    first, end = band_ranks(band, count)
    # The limits of the band are the scores of its first and last rank; only these keys are read.
    highest, lowest = (np.concatenate(keys_in_ranks(files, rank, rank + 1)) for rank in (first, end - 1))
    shown = "keys" if count <= _SHOWN else "fences"
    values = scores_of(np.concatenate([file.read(shown) for file in files]))
    return ScoreTable(by, values, float(scores_of(lowest)[0]), float(scores_of(highest)[0]))


@dataclass(frozen=True)
class _Keys(NumberedTask):
    scored: Location
    column: str
    selected: Location

    def compute(self) -> Arrays:
        file = ArrayFile(self.scored)
        rows = file.read("row")
        mask = StoredRows(self.selected).contains(rows)
        return sorted_keys(file.read(self.column)[mask], rows[mask])
