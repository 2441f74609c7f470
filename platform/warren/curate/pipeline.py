"""The curate job: it runs the steps of a recipe in order, then writes the selection, and the manifest last.

All work is done by tasks, whose results are stored in a workspace. The workspace's name is a digest of everything that
can change a result. So a killed attempt is resumed, and an attempt with other options has a workspace of its own. All
workspaces are deleted after the manifest is written.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from warren import __version__
from warren.config import CurateConfig
from warren.config.curate import (
    BalanceStep,
    ClusterStep,
    DecontaminateStep,
    DuplicatesStep,
    EmbeddingsConfig,
    NearDuplicatesStep,
    RankBandStep,
    SampleStep,
    SemDeDupStep,
    Step,
)
from warren.curate import decontamination, sample_vectors
from warren.curate.bands import band_scores, keep_band
from warren.curate.cluster_map import ClusterMap, cluster_map
from warren.curate.cluster_steps import keep_in_clusters, largest_groups
from warren.curate.clusters import Clusters, cluster, without
from warren.curate.decontamination import EvaluationSet
from warren.curate.embedding_search import near_pairs
from warren.curate.embedding_source import Embedder, EmbeddingSource
from warren.curate.filters import keep_filtered
from warren.curate.hash_duplicates import keep_first
from warren.curate.identity import CURATE_FORMAT, identify
from warren.curate.publication import completed, write_certificate
from warren.curate.report import ImagePair, StepReport, write_report
from warren.curate.row_mask import MAX_ROWS, RowSet, StoredRows
from warren.curate.sample_pieces import ROWS_PER_IMAGE_PIECE, Parent, sample_pieces, stored_shards
from warren.curate.sample_vectors import VectorPiece
from warren.curate.sampling import sample
from warren.curate.selection import Layout, write_selection
from warren.curate.tasks import Runner, Workspace
from warren.data.manifest import Manifest, dataset_folder, read_manifest, write_manifest
from warren.errors import DataError, EmptyDatasetError, NotFoundError, WarrenError
from warren.storage import Location


@dataclass(frozen=True)
class StepCount:
    """The number of samples before and after a step."""

    step: str
    before: int
    after: int


def curate(config: CurateConfig, root: Location, run: Runner, embed: Embedder | None = None) -> Manifest:
    """Select samples as a configuration says, and write them as a new dataset version.

    Args:
        root: The storage root with the datasets.
        run: Runs tasks.
        embed: Computes embeddings, where the configuration names a model.

    Raises:
        DataError: Embeddings are unusable or do not match, or the version exists and is another selection.
        EmptyDatasetError: A step keeps nothing.
    """
    folder = dataset_folder(root, f"{config.name}@{config.version}")
    parents = _parents(root, config.datasets)
    evaluations = [_parents(root, step.datasets) for step in config.steps if isinstance(step, DecontaminateStep)]
    identity = identify(config, parents, list(chain.from_iterable(evaluations)))
    # A finished selection is returned as it is, and what earlier attempts left beside it is deleted.
    present = completed(folder, identity)
    if present is not None:
        return present
    try:
        _make(config, root, run, embed, folder, parents, identity)
    except WarrenError:
        if completed(folder, identity) is None:  # else another job completed the version and deleted what this one made
            raise
    manifest = completed(folder, identity)
    assert manifest is not None
    return manifest


def _make(
    config: CurateConfig,
    root: Location,
    run: Runner,
    embed: Embedder | None,
    folder: Location,
    parents: list[Parent],
    identity: str,
) -> None:
    """Run the steps, and write the dataset with its manifest last."""
    # The memory is part of the name because it decides how the work is cut into tasks.
    work = Workspace(folder / "curation" / f"{identity[:32]}-{config.task_memory_mib}")
    selecting = _Selecting(config, parents, root, EmbeddingSource(run, embed, config.task_memory_mib << 20), work)
    counts = [selecting.take(number, step) for number, step in enumerate(config.steps)]
    report = f"report-{identity[:8]}"
    write_report(folder / report, selecting.reports, selecting.pieces, selecting.cluster_map())
    layout = Layout(folder, identity[:8], config.rewrite_below, config.samples_per_shard, config.samples_per_row_group)
    shards = write_selection(run, work / "selection", layout, selecting.shards, selecting.selected)
    record: dict[str, Any] = {
        "code": f"warren {__version__}, curate format {CURATE_FORMAT}",
        "identity": identity,
        "parents": {parent.reference: parent.manifest.digest for parent in parents},
        "options": config.content_options,
        "counts": [asdict(count) for count in counts],
    }
    if selecting.certificates:
        record["certificate"] = write_certificate(folder, identity, selecting.certificates)
    manifest = Manifest(config.name, config.version, shards, _origins(parents), _licences(parents), {}, record)
    write_manifest(root, manifest)


class _Selecting:
    """The state of a selection: the rows that are still selected, and what steps may read."""

    def __init__(
        self, config: CurateConfig, parents: list[Parent], root: Location, source: EmbeddingSource, work: Workspace
    ) -> None:
        self.shards = stored_shards(parents)
        num_rows = self.shards[-1].stop
        if num_rows > MAX_ROWS:
            raise DataError(f"{num_rows} samples are too many for one selection: at most {MAX_ROWS}; select from parts")
        self._config, self._root, self._source, self._work = config, root, source, work
        self._run, self._memory = source.run, source.memory
        self.reports: list[StepReport] = []
        self.certificates: list[dict[str, Any]] = []
        self.pieces = sample_pieces(self.shards)
        self._image_pieces = sample_pieces(self.shards, ROWS_PER_IMAGE_PIECE)
        self._vectors: list[VectorPiece] | None = None
        self._scores: list[Location] = []
        self._clusters: Clusters | None = None
        self._pairs: tuple[ImagePair, ...] = ()
        self.num_rows = num_rows
        self.count = num_rows
        self.selected = self._store("start", RowSet.full(num_rows))

    def take(self, number: int, step: Step) -> StepCount:
        """Run a step; the rows that it keeps are the selected rows from then on."""
        work = self._work / f"{number:02d}-{step.step}"
        before = self.count
        # Reading embeddings is the dearest part, so it waits for the first step that needs them.
        by_embeddings = isinstance(step, ClusterStep | RankBandStep) or getattr(step, "min_cosine", None) is not None
        if self._config.embeddings is not None and by_embeddings:
            self._embeddings(self._config.embeddings)
        try:
            kept = StoredRows(work.folder / "kept").load()
            if isinstance(step, ClusterStep | DecontaminateStep):
                self._keep(work, step)  # restores the clusters or the certificate from stored results
        except NotFoundError:
            kept = self._keep(work, step)
        self.count = len(kept)
        if self.count == 0:
            raise EmptyDatasetError(
                f"curate.steps.{number} ({step.step}) keeps none of {before} samples: loosen it or leave it out"
            )
        taken, self.selected = self.selected, self._store(f"{number:02d}-{step.step}/kept", kept)
        scores = band_scores(work, step.by, step.band) if isinstance(step, RankBandStep) else None
        groups = largest_groups(work) if isinstance(step, NearDuplicatesStep) else ()
        pairs = self._pairs if isinstance(step, DecontaminateStep) else ()
        sets = StoredRows(taken), StoredRows(self.selected)
        self.reports.append(StepReport(_label(step), *sets, before, self.count, scores, groups, pairs))
        return StepCount(_label(step), before, self.count)

    def cluster_map(self) -> ClusterMap | None:
        """Return the map of the last clusters with what is selected of each; None if there are none."""
        if self._clusters is None:
            return None
        return cluster_map(self._run, self._work / "cluster-map", self._clusters, self.selected)

    def _keep(self, work: Workspace, step: Step) -> RowSet:
        if isinstance(step, ClusterStep):
            self._clusters = cluster(
                self._run, work, step, self._vectors or [], self.selected, self.count, self._memory
            )
            return without(self._clusters, step.drop_clusters, StoredRows(self.selected).load())
        if isinstance(step, NearDuplicatesStep | SemDeDupStep | BalanceStep):
            assert self._clusters is not None
            return keep_in_clusters(self._run, work, step, self._clusters, self.selected, self.num_rows, self._memory)
        if isinstance(step, RankBandStep):
            # The last clustering stored the cosine to the centroid beside each sample.
            of_clusters = step.by == "centroid_cosine"
            files = list(self._clusters.files) if of_clusters and self._clusters else self._scores
            column = "cosine" if of_clusters else "score"
            return keep_band(self._run, work, files, column, step.band, self.selected, self.num_rows)
        if isinstance(step, DecontaminateStep):
            return self._decontaminate(work, step)
        if isinstance(step, DuplicatesStep):
            # Decoding an image takes far longer than reading a row, so a task gets fewer rows.
            pieces = self._image_pieces if step.of == "pixels" else self.pieces
            return keep_first(self._run, work, step, pieces, self.selected, self.num_rows, self._memory)
        if isinstance(step, SampleStep):
            return sample(StoredRows(self.selected).load(), step.samples, step.seed)
        return keep_filtered(self._run, work, step, self.pieces, self.selected, self.num_rows)  # type: ignore[arg-type]

    def _decontaminate(self, work: Workspace, step: DecontaminateStep) -> RowSet:
        """Look for evaluation sets among the selected samples, and record the matches."""
        parents = _parents(self._root, step.datasets)
        evaluations = decontamination.prepare(self._run, work, step, parents)
        near = None if step.min_cosine is None else self._near(work, step, evaluations)
        matches = decontamination.find(self._run, work, step, evaluations, self._image_pieces, self.selected, near)
        self._pairs = decontamination.image_pairs(evaluations, matches)
        self.certificates.append(decontamination.certificate(step, evaluations, self.pieces, matches, self.count))
        selected = StoredRows(self.selected)
        return decontamination.without_matches(matches, selected) if step.remove else selected.load()

    def _near(self, work: Workspace, step: DecontaminateStep, evaluations: Sequence[EvaluationSet]) -> Location:
        """Return pairs of samples and evaluation images whose embeddings are near."""
        assert self._config.embeddings is not None
        assert step.min_cosine is not None
        of_evaluations = self._config.embeddings.of_evaluations(step.evaluation_embeddings)
        vectors = [
            self._source.vectors(of_evaluations, work / f"vectors-{each.reference}", each.pieces)
            for each in evaluations
        ]
        pieces, own = self._image_pieces, self._vectors or []
        return near_pairs(self._run, work, vectors, own, pieces, self.selected, step.min_cosine)

    def _embeddings(self, config: EmbeddingsConfig) -> None:
        """Read or compute the embeddings, join them with the samples and check them; only the first call does so."""
        if self._vectors is not None:
            return
        self._vectors = self._source.vectors(config, self._work, self.pieces)
        files = sample_vectors.clip_scores(self._run, self._work / "scores", self._vectors)
        self._scores = [file.location for file in files]

    def _store(self, name: str, rows: RowSet) -> Location:
        location = self._work.folder / name
        location.put_bytes(rows.to_bytes())
        return location


def _label(step: Step) -> str:
    return f"{step.step}-{step.by}" if isinstance(step, RankBandStep) else step.step


def _parents(root: Location, references: Sequence[str]) -> list[Parent]:
    return [Parent(name, dataset_folder(root, name), read_manifest(root, name)) for name in references]


def _origins(parents: list[Parent]) -> str:
    return "; ".join(f"{parent.reference}: {parent.manifest.source}" for parent in parents)


def _licences(parents: list[Parent]) -> str:
    return "; ".join(sorted({parent.manifest.licence for parent in parents}))


def describe(manifest: Manifest) -> list[str]:
    """Return one line for each step of a finished selection, with its counts."""
    counts: list[dict[str, Any]] = manifest.selection["counts"]
    return [f"{each['step']}: {each['before']} → {each['after']} samples" for each in counts]
