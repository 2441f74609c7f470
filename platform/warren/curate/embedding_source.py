"""Where a dataset's embeddings come from: files that exist, joined by key, or a model that computes them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from warren.config.curate import EmbeddingsConfig
from warren.curate import embedding_join
from warren.curate.embeddings import pieces as embedding_pieces
from warren.curate.embeddings import width
from warren.curate.row_mask import MAX_ROWS
from warren.curate.sample_pieces import SamplePiece
from warren.curate.sample_vectors import PrecomputedVectors, VectorPiece
from warren.curate.tasks import Runner, Workspace
from warren.errors import ConfigError

Embedder = Callable[[EmbeddingsConfig, Workspace, list[SamplePiece]], list[VectorPiece]]
"""Computes the embeddings of samples with a model."""


@dataclass(frozen=True)
class EmbeddingSource:
    """Reads or computes embeddings.

    Attributes:
        run: Runs tasks.
        embed: Computes embeddings; None where there is no cluster.
        memory: Bytes that a task may use.
    """

    run: Runner
    embed: Embedder | None
    memory: int

    def vectors(self, config: EmbeddingsConfig, work: Workspace, pieces: Sequence[SamplePiece]) -> list[VectorPiece]:
        """Return the embeddings of samples.

        Args:
            work: Takes what is computed, below `keys` or `embeddings`.

        Raises:
            ConfigError: A model is named, and nothing can compute with it.
            DataError: Keys of the files and of the samples do not match.
        """
        if config.path is not None:
            return self._precomputed(config, work / "keys", pieces)
        if self.embed is None:
            raise ConfigError("embeddings.model needs a job on a cluster: python jobs/curate.py")
        return self.embed(config, work / "embeddings", list(pieces))

    def _precomputed(
        self, config: EmbeddingsConfig, work: Workspace, pieces: Sequence[SamplePiece]
    ) -> list[VectorPiece]:
        columns, row_bytes = width(embedding_pieces(config, MAX_ROWS)[:1])
        # A row takes its image and text embeddings as stored, and up to three float32 copies of each.
        rows = max(1, self.memory // (2 * row_bytes + 24 * columns))
        source = embedding_pieces(config, rows)
        placed = embedding_join.place(self.run, work, pieces, source, self.memory, config.unmatched)
        return [PrecomputedVectors(piece, file.location) for piece, file in zip(source, placed, strict=True)]
