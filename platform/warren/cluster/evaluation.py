"""Measuring a checkpoint as a Ray Data batch job: dataset → generation actors → predictions and a report."""

import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
from ray.data import ActorPoolStrategy, TaskPoolStrategy
from tqdm import tqdm

from warren.cluster.capacity import lacks, waiting, wanted
from warren.cluster.judging import judge_of
from warren.config import EvaluateConfig, Resources
from warren.data.manifest import Manifest, dataset_folder, read_manifest
from warren.data.sample import Sample
from warren.errors import ConflictError, EmptyDatasetError, TrainingError
from warren.evaluate.report import Evaluation, render
from warren.evaluate.scoring import score
from warren.storage import Location, download_tree
from warren.train.checkpoint import MODEL_FOLDER, CheckpointManifest
from warren.train.record import Run

REPORT = "report.json"
_NUM_READERS = 2


def evaluation_folder(run: Run, step: int, config: EvaluateConfig) -> Location:
    """Return where the evaluation of one checkpoint on one dataset is written; a control has its own."""
    name = f"{config.dataset}-shuffled-images" if config.shuffled_images else config.dataset
    return run.folder / "evaluations" / f"{step:08d}" / name


def evaluate(config: EvaluateConfig, resources: Resources, root: Location, run: Run) -> Evaluation:
    """Measure the run's newest checkpoint; one that is measured already is only read.

    Raises:
        TrainingError: The run has no complete checkpoint.
        EmptyDatasetError: There is nothing to measure on.
    """
    checkpoint = run.checkpoints.latest()
    if checkpoint is None:
        raise TrainingError(f"run {run.name!r} at {run.folder} has no complete checkpoint to evaluate")
    folder = evaluation_folder(run, checkpoint.step, config)
    name = REPORT if config.limit_samples is None else f"first-{config.limit_samples}-{REPORT}"
    if any(found.name == name for found in folder.list()):
        return Evaluation(**(folder / name).read_json())
    rows = _predict(config, resources, root, run, checkpoint)
    if not rows:
        raise EmptyDatasetError(f"dataset {config.dataset!r}: no sample to evaluate on")
    rows.sort(key=lambda row: row["key"])
    measured = score([row["correct"] for row in rows], [row["truth"] for row in rows])
    by_kind = {kind: _share([r for r in rows if r["truth"] == kind]) for kind in sorted({r["truth"] for r in rows})}
    num_choices = config.num_choices if config.metric == "choice" else None
    evaluation = Evaluation(
        run.name, checkpoint.step, folder.name, config.metric, asdict(measured), by_kind, num_choices
    )
    _write(folder, name, rows, evaluation)
    return evaluation


def _predict(
    config: EvaluateConfig, resources: Resources, root: Location, run: Run, checkpoint: CheckpointManifest
) -> list[dict[str, Any]]:
    manifest = read_manifest(root, config.dataset)
    samples = _stored_samples(dataset_folder(root, config.dataset), manifest)
    if config.limit_samples is not None:
        samples = samples.limit(config.limit_samples)
    predictions = samples.map_batches(
        Predictor,
        fn_constructor_args=(config, run.checkpoints.at(checkpoint.step), checkpoint),
        batch_size=config.batch_size,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=resources.num_evaluators),
        num_cpus=resources.cpus_per_replica,
        num_gpus=resources.gpus_per_replica,
    )
    number, cpus, gpus = resources.num_evaluators, resources.cpus_per_replica, resources.gpus_per_replica
    if lacks(number * cpus, number * gpus):
        print(f"evaluate {run.name}: {waiting(wanted(number, 'evaluators', cpus, gpus))}", file=sys.stderr)
    total = min(manifest.rows, config.limit_samples or manifest.rows)
    rows = []
    with tqdm(total=total, desc=f"evaluate {run.name}", unit="sample", mininterval=5) as bar:
        for batch in predictions.iter_batches(batch_size=None, batch_format="pyarrow"):
            rows += batch.to_pylist()
            bar.update(batch.num_rows)
    return rows


def _stored_samples(folder: Location, manifest: Manifest) -> ray.data.Dataset:
    """Stream a dataset's rows in stored order, a row group a block.

    Reading asks for no CPU: evaluators may take every one, and Ray Data's own reader would wait for ever for its own.
    """
    row_groups = [
        pa.table({"uri": [(folder / shard.file.path).uri], "row_group": [row_group]})
        for shard in manifest.shards
        for row_group in range(len(shard.row_groups))
    ]
    samples = ray.data.from_arrow(row_groups).map_batches(
        _read_row_group,
        batch_size=None,
        batch_format="pyarrow",
        compute=TaskPoolStrategy(_NUM_READERS),
        num_cpus=0,
    )
    samples.context.execution_options.preserve_order = True  # which samples share a batch decides who is chosen from
    return samples


def _read_row_group(wanted: pa.Table) -> pa.Table:
    (wanted,) = wanted.to_pylist()
    with Location(wanted["uri"]).open() as file:
        return pq.ParquetFile(file, page_checksum_verification=True).read_row_group(wanted["row_group"])


@dataclass
class Predictor:
    """A Ray Data actor: holds the model, answers the first question of every sample."""

    config: EvaluateConfig
    folder: Location
    checkpoint: CheckpointManifest

    def __post_init__(self) -> None:
        local = Path(mkdtemp(prefix="warren-evaluate-"))
        files = self.checkpoint.below(MODEL_FOLDER)
        download_tree(self.folder, files, local)
        self._judge = judge_of(self.config, local / files[0].path.split("/")[0] / MODEL_FOLDER)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Answer a batch of samples."""
        samples = [Sample.from_row(row) for row in batch.to_pylist()]
        return pa.Table.from_pylist([asdict(verdict) for verdict in self._judge(samples)])


def _share(rows: list[dict[str, Any]]) -> list[float]:
    return [len(rows), sum(row["correct"] for row in rows) / len(rows)]


def _write(folder: Location, name: str, rows: list[dict[str, Any]], evaluation: Evaluation) -> None:
    """Write predictions and the report; the JSON report last, as it makes the evaluation complete."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    files = {"predictions.parquet": sink.getvalue().to_pybytes(), "report.md": render(evaluation).encode()}
    prefix = name.removesuffix(REPORT)
    for file, data in files.items():
        target = folder / f"{prefix}{file}"
        target.store.delete(target.key)
        target.create_bytes(data)
    with suppress(ConflictError):  # someone else measured the same checkpoint on the same data meanwhile
        (folder / name).create_json(asdict(evaluation))
