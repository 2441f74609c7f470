"""Evaluation images whose embeddings are near a training image's: candidates for the comparison of pixels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from warren.curate.array_files import ArrayFile, Arrays
from warren.curate.row_mask import StoredRows
from warren.curate.sample_pieces import SamplePiece
from warren.curate.sample_vectors import VectorPiece
from warren.curate.tasks import NumberedTask, Runner, Workspace, finish
from warren.curate.vector_math import unit, unusable
from warren.storage import Location

_NEAREST = 8  # evaluation images for one training image
_BLOCK = 2048  # rows of a product


def near_pairs(
    run: Runner,
    work: Workspace,
    evaluations: Sequence[Sequence[VectorPiece]],
    vectors: Sequence[VectorPiece],
    pieces: Sequence[SamplePiece],
    selected: Location,
    min_cosine: float,
) -> Location:
    """Return a file of pairs that are near: `row`, `evaluation`, `evaluation_row`, and `starts` of each piece.

    Args:
        evaluations: The embeddings of each evaluation set; all of them fit into a task's memory.
        vectors: The embeddings of the samples.
        pieces: The pieces of the samples by which the pairs are sorted.
    """
    gathered = finish(run, work / "evaluation-vectors", [_Gather(tuple(tuple(each) for each in evaluations))])[0]
    tasks = [NearEmbeddings(n, piece, selected, gathered.location, min_cosine) for n, piece in enumerate(vectors)]
    files = finish(run, work / "near", tasks)
    row, evaluation, other = (
        np.concatenate([file.read(name) for file in files]) for name in ("row", "evaluation", "evaluation_row")
    )
    # Sorted by row, so that each piece of the samples reads one range of the file.
    order = np.lexsort((other, evaluation, row))
    starts = np.searchsorted(row[order], [*(piece.first for piece in pieces), pieces[-1].stop])
    columns = {"row": row[order], "evaluation": evaluation[order], "evaluation_row": other[order]}
    work.put("near-by-piece", {**columns, "starts": starts})
    return work.file("near-by-piece").location


@dataclass(frozen=True)
class _Gather:
    """The embeddings of all evaluation sets in one file; unusable ones are left out."""

    evaluations: tuple[tuple[VectorPiece, ...], ...]

    @property
    def name(self) -> str:
        return "all"

    def compute(self) -> Arrays:
        images, rows, numbers = [], [], []
        for number, pieces in enumerate(self.evaluations):
            for piece in pieces:
                vectors = piece.load()
                broken, zero = unusable(vectors.image)
                usable = ~(broken | zero)
                images.append(unit(vectors.image[usable]))
                rows.append(vectors.rows[usable].astype(np.int64))
                numbers.append(np.full(int(usable.sum()), number))
        return {"image": np.concatenate(images), "row": np.concatenate(rows), "evaluation": np.concatenate(numbers)}


@dataclass(frozen=True)
class NearEmbeddings(NumberedTask):
    """The pairs of one piece of the samples' embeddings."""

    piece: VectorPiece
    selected: Location
    evaluation: Location
    min_cosine: float

    def compute(self) -> Arrays:
        """Return the result."""
        file, vectors = ArrayFile(self.evaluation), self.piece.load()
        mask = StoredRows(self.selected).contains(vectors.rows)
        rows, image = vectors.rows[mask].astype(np.int64), vectors.image[mask]
        others = file.read("image")
        left, right = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for start in range(0, len(rows), _BLOCK):
            cosines = unit(image[start : start + _BLOCK]) @ others.T
            # A few per image: the pixels decide, and an image near everything would make its task slow.
            nearest = np.argsort(-cosines, axis=1, kind="stable")[:, :_NEAREST]
            place, rank = np.nonzero(np.take_along_axis(cosines, nearest, axis=1) >= self.min_cosine)
            left.append(rows[start + place])
            right.append(nearest[place, rank])
        other = np.concatenate(right)
        return {
            "row": np.concatenate(left),
            "evaluation": file.read("evaluation")[other],
            "evaluation_row": file.read("row")[other],
        }
