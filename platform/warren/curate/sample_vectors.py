"""Embeddings with the rows of their samples, precomputed or computed here, checked once; all steps read them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from warren.curate.array_files import ArrayFile, Arrays
from warren.curate.embedding_join import NO_ROW
from warren.curate.embeddings import EmbeddingPiece
from warren.curate.tasks import NumberedTask, Runner, Workspace, finish
from warren.curate.vector_math import cosines, unit, unusable
from warren.errors import DataError
from warren.storage import Location


@dataclass(frozen=True)
class Vectors:
    """Embeddings of some samples.

    Attributes:
        rows: (n,), the samples' rows.
        image: (n, width), as stored.
        text: Text embeddings of the same shape, if there are any.
        cluster: (n,), assigned clusters, if there are any.
    """

    rows: np.ndarray
    image: np.ndarray
    text: np.ndarray | None
    cluster: np.ndarray | None


class VectorPiece(Protocol):
    """A part of the embeddings that one task reads."""

    def load(self) -> Vectors:
        """Read it."""


@dataclass(frozen=True)
class PrecomputedVectors:
    """A piece of precomputed embeddings, joined with the rows of its samples."""

    piece: EmbeddingPiece
    placed: Location

    def load(self) -> Vectors:
        """Read it; embeddings without a sample are left out."""
        read = self.piece.read()
        rows = ArrayFile(self.placed).read("row")
        known = rows != NO_ROW
        if known.all():
            return Vectors(rows, read.image, read.text, read.cluster)
        parts = (None if part is None else part[known] for part in (read.image, read.text, read.cluster))
        return Vectors(rows[known], *parts)  # type: ignore[arg-type]


@dataclass(frozen=True)
class ComputedVectors:
    """A piece of embeddings that Warren computed: `row`, `image` and, if the model reads text, `text`."""

    location: Location

    def load(self) -> Vectors:
        """Read it."""
        file = ArrayFile(self.location)
        text = file.read("text") if "text" in file else None
        return Vectors(file.read("row"), file.read("image"), text, None)


@dataclass(frozen=True)
class _Score(NumberedTask):
    piece: VectorPiece

    def compute(self) -> Arrays:
        vectors = self.piece.load()
        broken, zero = unusable(vectors.image)
        if vectors.text is not None:
            broken_text, zero_text = unusable(vectors.text)
            broken, zero = broken | broken_text, zero | zero_text
        # Reported and not raised, so that one message can count the bad embeddings of all pieces.
        bad = {"broken": vectors.rows[broken], "zero": vectors.rows[zero & ~broken]}
        if (broken | zero).any() or vectors.text is None:
            score = np.full(len(vectors.rows), np.nan, np.float32)
        else:
            score = cosines(unit(vectors.image), unit(vectors.text)).astype(np.float32)
        return {"row": vectors.rows, "score": score, "width": np.array([vectors.image.shape[1]]), **bad}


def clip_scores(run: Runner, work: Workspace, pieces: Sequence[VectorPiece]) -> list[ArrayFile]:
    """Check all embeddings; return for each piece a file of `row` and `score`, the cosine of image and text.

    Raises:
        DataError: Embeddings hold NaN or infinity, are zero, or differ in length; the message counts them.
    """
    files = finish(run, work, [_Score(number, piece) for number, piece in enumerate(pieces)])
    total = sum(file.rows("row") for file in files)
    broken, zero = (sum(file.rows(name) for file in files) for name in ("broken", "zero"))
    if broken or zero:
        raise DataError(
            f"of {total} embeddings {broken} hold NaN or infinity and {zero} are zero: compute them again, or leave "
            "them out of the files and set embeddings.unmatched to drop"
        )
    widths = sorted({int(file.read("width")[0]) for file in files})
    if len(widths) > 1:
        raise DataError(
            f"embeddings of unequal length: {', '.join(map(str, widths))} numbers; all must be of one model"
        )
    return files
