"""Measuring a checkpoint as a Ray Data batch job: dataset → generation actors → predictions and a report."""

import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import ActorPoolStrategy, TaskPoolStrategy
from tqdm import tqdm

from warren.cluster.capacity import lacks, size_of, waiting
from warren.cluster.serve.lineage import lineage_of
from warren.config import EvaluateConfig, Resources
from warren.data.contamination_certificate import contaminated_samples
from warren.data.manifest import Manifest, StoredGroup, dataset_folder, folder_of, read_manifest
from warren.errors import CorruptDataError, DataError, EmptyDatasetError, StorageError
from warren.evaluate.accuracy import score
from warren.evaluate.contamination_split import ContaminationSplit
from warren.evaluate.evaluation_page import choose_examples, evaluation_page
from warren.evaluate.evaluation_report import Evaluation
from warren.evaluate.identity import Identity
from warren.evaluate.predictions import SampleQuestion, load_predictor, to_table
from warren.evaluate.report_page import render_html
from warren.evaluate.stored_evaluations import Evaluations
from warren.release import TrainingDataset
from warren.storage import Location, StoredFiles
from warren.storage.file_cache import local_copy
from warren.storage.parquet import open_parquet
from warren.train.checkpoint import MODEL_FOLDER, CheckpointManifest
from warren.train.run import Run

_NUM_READERS = 2
_NUM_EXAMPLE_READERS = 4
_LISTED_REASONS = 20
_READ_SCHEMA = pa.schema([("uri", pa.string()), ("row_group", pa.int64()), ("rows", pa.list_(pa.int64()))])

Rows = list[dict[str, Any]]


def evaluations_of(run: Run) -> Evaluations:
    """Return the evaluations of a run."""
    return Evaluations(run.folder / "evaluations")


def identify(config: EvaluateConfig, checkpoint: CheckpointManifest, manifest: Manifest) -> Identity:
    """Return the identity of the evaluation of a checkpoint on a dataset."""
    return Identity.of(config, checkpoint.digest(MODEL_FOLDER), manifest.digest)


def evaluate(
    config: EvaluateConfig, resources: Resources, root: Location, run: Run, step: int | None = None
) -> Evaluation:
    """Evaluate a checkpoint of a run. An evaluation of the same identity is read from storage, not repeated.

    Args:
        step: Of the checkpoint; None for the newest.

    Raises:
        CheckpointError: The run has no complete checkpoint, or none at that step.
        EmptyDatasetError: There is nothing to measure on.
        QuarantineError: More samples cannot be asked than the configuration allows.
    """
    checkpoint = run.newest_checkpoint() if step is None else run.checkpoints.read(step)
    manifest = read_manifest(root, config.dataset)
    identity = identify(config, checkpoint, manifest)
    stored = evaluations_of(run)
    stored_evaluation = stored.find(checkpoint.step, identity)
    where = stored.at(checkpoint.step, identity)
    if stored_evaluation is not None:
        stored_evaluation.check_quarantined(config.max_quarantined_fraction, where)
        return stored_evaluation
    in_stored_order = _predict(config, resources, root, run, checkpoint, manifest)
    rows = sorted(in_stored_order, key=lambda row: row["key"])
    answered = [row for row in rows if row["problem"] is None]
    unusable = [row for row in rows if row["problem"] is not None]
    trained_on = lineage_of(root, run, checkpoint, identity).datasets
    contaminated = {each.reference: _contaminated(root, each, manifest) for each in trained_on}
    split = ContaminationSplit.of(answered, contaminated)
    measured = _summarise(run.name, checkpoint.step, identity, answered, unusable, split)
    if unusable:
        stored.write_quarantine(
            measured, [{"key": row["key"], "source": row["source"], "reason": row["problem"]} for row in unusable]
        )
    if not answered:
        measured.check_quarantined(config.max_quarantined_fraction, where)
        raise EmptyDatasetError(f"dataset {config.dataset!r}: no sample could be asked")
    # Stored first, checked by every reader: with a higher limit, the same is not measured again.
    predictions = [{key: row[key] for key in row if key != "problem"} for row in answered]
    examples = _examples(config, root, manifest, in_stored_order)
    page = render_html(evaluation_page(measured, predictions, examples))
    measured = stored.write(measured, predictions, page)
    measured.check_quarantined(config.max_quarantined_fraction, where)
    return measured


def _contaminated(root: Location, dataset: TrainingDataset, evaluation: Manifest) -> frozenset[str] | None:
    """Return the evaluation's samples that a training dataset holds; None where they were not looked for."""
    try:
        trained_on = read_manifest(root, dataset.reference)
    except (DataError, StorageError):  # it is gone
        return None
    if trained_on.digest != dataset.digest:
        return None
    return contaminated_samples(root, trained_on, f"{evaluation.name}@{evaluation.version}", evaluation.digest)


def _summarise(
    run: str, step: int, identity: Identity, answered: Rows, unusable: Rows, split: ContaminationSplit | None
) -> Evaluation:
    by_truth: dict[str, list[bool]] = {}
    for row in answered:
        by_truth.setdefault(row["truth"], []).append(row["correct"])
    chances = [1 / row["num_choices"] for row in answered if row["num_choices"]]
    return Evaluation(
        run,
        step,
        identity,
        score=score([row["correct"] for row in answered], [row["truth"] for row in answered]),
        by_truth={truth: [len(right), sum(right) / len(right)] for truth, right in sorted(by_truth.items())},
        chance=sum(chances) / len(chances) if chances else None,
        num_quarantined=len(unusable),
        reasons=dict(Counter(row["problem"] for row in unusable).most_common(_LISTED_REASONS)),
        contamination=split,
    )


def _examples(
    config: EvaluateConfig, root: Location, manifest: Manifest, rows: Rows
) -> list[tuple[dict[str, Any], tuple[bytes, ...]]]:
    """Read the images of the samples that the report shows.

    Args:
        config: Chose the samples.
        root: Holds the dataset.
        manifest: The dataset's.
        rows: What became of each sample, in stored order.
    """
    answered = [(place, row) for place, row in enumerate(rows) if row["problem"] is None]
    shown = [answered[number] for number in choose_examples([row for _, row in answered])]
    if config.shuffled_images:  # they were asked about other images than their own
        return [(row, ()) for _, row in shown]
    reads, folder = _chosen(config, manifest), dataset_folder(root, config.dataset)
    ends = np.cumsum([read.num_rows for read in reads])

    def images_at(place: int) -> tuple[bytes, ...]:
        number = int(np.searchsorted(ends, place, side="right"))
        read = reads[number]
        table = _read_row_group(pa.Table.from_pylist([read.located(folder)], schema=_READ_SCHEMA))
        return SampleQuestion.of(table.slice(place - int(ends[number]) + read.num_rows, 1).to_pylist()[0]).prompt.images

    with ThreadPoolExecutor(_NUM_EXAMPLE_READERS) as pool:
        images = list(pool.map(images_at, [place for place, _ in shown]))
    return [(row, each) for (_, row), each in zip(shown, images, strict=True)]


def _predict(
    config: EvaluateConfig,
    resources: Resources,
    root: Location,
    run: Run,
    checkpoint: CheckpointManifest,
    manifest: Manifest,
) -> Rows:
    predictions = _stored_samples(dataset_folder(root, config.dataset), _chosen(config, manifest)).map_batches(
        Predictor,
        fn_constructor_args=(config, run.checkpoints.part(checkpoint, MODEL_FOLDER)),
        batch_size=config.batch_size,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=resources.num_evaluators),
        num_cpus=resources.cpus_per_replica,
        num_gpus=resources.gpus_per_replica,
    )
    number, cpus, gpus = resources.num_evaluators, resources.cpus_per_replica, resources.gpus_per_replica
    if lacks(number * cpus, number * gpus):
        print(f"evaluate {run.name}: {waiting(size_of(number, 'evaluators', cpus, gpus))}", file=sys.stderr)
    total = min(manifest.rows, config.limit_samples or manifest.rows)
    rows: Rows = []
    with tqdm(total=total, desc=f"evaluate {run.name}", unit="sample", mininterval=5) as bar:
        for batch in predictions.iter_batches(batch_size=None, batch_format="pyarrow"):
            rows += batch.to_pylist()
            bar.update(batch.num_rows)
    return rows


@dataclass(frozen=True)
class _RowGroup:
    """One read: which rows of which stored row group; `rows` is None for all that the dataset has of it."""

    group: StoredGroup
    rows: list[int] | None
    num_rows: int

    def located(self, folder: Location) -> dict[str, Any]:
        """Return where the rows are, as a row of `_READ_SCHEMA`."""
        uri = (folder_of(folder, self.group) / self.group.file.path).uri
        return {"uri": uri, "row_group": self.group.row_group, "rows": self.stored_rows}

    @property
    def stored_rows(self) -> list[int] | None:
        """The rows by their places in the stored row group."""
        places = self.group.rows()
        if places is None:
            return self.rows
        return [int(row) for row in (places if self.rows is None else places[self.rows])]


def _chosen(config: EvaluateConfig, manifest: Manifest) -> list[_RowGroup]:
    """List what is read, in stored order: everything, or the samples that the limit and the seed choose."""
    groups = [(shard.group(n), size) for shard in manifest.shards for n, size in enumerate(shard.row_groups)]
    if config.limit_samples is None or config.limit_samples >= manifest.rows:
        return [_RowGroup(group, None, size) for group, size in groups]
    places = np.arange(config.limit_samples)
    if config.sample_seed is not None:
        drawn = np.random.default_rng(config.sample_seed).permutation(manifest.rows)
        places = np.sort(drawn[: config.limit_samples])
    row_groups, start = [], 0
    for group, size in groups:
        rows = (places[(places >= start) & (places < start + size)] - start).tolist()
        start += size
        if rows:
            row_groups.append(_RowGroup(group, rows, len(rows)))
    return row_groups


def _stored_samples(folder: Location, reads: list[_RowGroup]) -> ray.data.Dataset:
    """Stream a dataset's rows in stored order, a row group a block.

    Reading asks for no CPU: evaluators may take every one, and Ray Data's own reader would wait for ever for its own.
    """
    blocks = [pa.Table.from_pylist([read.located(folder)], schema=_READ_SCHEMA) for read in reads]
    samples = ray.data.from_arrow(blocks).map_batches(
        _read_row_group,
        batch_size=None,
        batch_format="pyarrow",
        compute=TaskPoolStrategy(_NUM_READERS),
        num_cpus=0,
    )
    samples.context.execution_options.preserve_order = True  # which samples share a batch decides who is chosen from
    return samples


def _read_row_group(request: pa.Table) -> pa.Table:
    (read,) = request.to_pylist()
    try:
        with Location(read["uri"]).open() as file:
            parquet = open_parquet(file, read["uri"], page_checksum_verification=True)
            table = parquet.read_row_group(read["row_group"])
    except (pa.ArrowException, OSError) as error:  # storage's own errors are Warren's, and pass
        where = f"{read['uri']}, row group {read['row_group']}"
        raise CorruptDataError(f"{where} is damaged: {error}; restore it or make the dataset anew") from None
    return table if read["rows"] is None else table.take(read["rows"])


@dataclass
class Predictor:
    """A Ray Data actor: holds the model, answers the first question of every sample."""

    config: EvaluateConfig
    model: StoredFiles

    def __post_init__(self) -> None:
        with local_copy(self.model) as folder:  # loading reads all of it
            self._predict = load_predictor(self.config, folder)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Answer a batch of samples."""
        return to_table(self._predict(batch.to_pylist()))
