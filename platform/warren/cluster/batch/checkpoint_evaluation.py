"""Evaluating a checkpoint of a run by the recipe's dataset and benchmarks, and writing its scores beside the run."""

from collections.abc import Mapping
from typing import Any

from warren.cluster.batch.benchmark import ask_on_cluster
from warren.cluster.batch.evaluation import evaluate, evaluations_of
from warren.config import BenchmarkConfig, EvaluateConfig, Resources
from warren.errors import DataError
from warren.evaluate.benchmark_result import finish
from warren.evaluate.benchmark_run import BenchmarkRun, QuestionSource
from warren.evaluate.evaluation_report import Evaluation
from warren.evaluate.model_source import ModelSource
from warren.evaluate.score_formatting import table
from warren.storage import Location
from warren.train.checkpoint import CheckpointManifest
from warren.train.checkpoint_scores import CheckpointScores, EvaluationScores, evaluation_name, weights_of
from warren.train.run import Run


def evaluate_on_dataset(
    config: EvaluateConfig, resources: Resources, root: Location, run: Run, step: int | None = None
) -> Evaluation:
    """Measure a checkpoint of a run as `evaluate` does, and write its score beside the run."""
    checkpoint = run.newest_checkpoint() if step is None else run.checkpoints.read(step)
    measured = evaluate(config, resources, root, run, checkpoint.step)
    report = evaluations_of(run).at(measured.step, measured.identity) / "report.md"
    write_scores(run, checkpoint, config, {f"{measured.dataset}/{measured.metric}": measured.value}, report)
    return measured


def evaluate_on_benchmark(
    config: BenchmarkConfig, resources: Resources, root: Location, run: Run, step: int
) -> Mapping[str, Any]:
    """Ask a checkpoint of a run a benchmark, write its scores beside the run, and return the report.

    Raises:
        DataError: The benchmark gives no scores.
        QuarantineError: More questions failed than the configuration allows.
    """
    source = QuestionSource.of(config.name, config.data, config.split, config.convention)
    checkpoint, answering = run.checkpoints.read(step), ModelSource.of_run(run, step)
    asked = BenchmarkRun(source, answering.model, root=root)
    ask_on_cluster(asked, answering.files, resources)
    reference = Location.parse(config.reference) if config.reference else None
    result = finish(asked, reference, config.convention, config.max_failed_fraction)
    page = result.page or asked.folder
    if not write_benchmark_scores(run, checkpoint, config, result.report, page):
        raise DataError(
            f"{config.name} gives no scores under the convention {result.report['convention']}: its server or a judge "
            f"model scores the answers in {page}; choose another convention"
        )
    return result.report


def write_benchmark_scores(
    run: Run, checkpoint: CheckpointManifest, config: BenchmarkConfig, report: Mapping[str, Any], page: Location
) -> bool:
    """Write the scores of a benchmark's report beside the run; False: it has none."""
    scores = {f"{report['benchmark']}/{line.name}": float(line.value) for line in table(report)}
    if scores:
        write_scores(run, checkpoint, config, scores, page)
    return bool(scores)


def write_scores(
    run: Run,
    checkpoint: CheckpointManifest,
    config: EvaluateConfig | BenchmarkConfig,
    scores: Mapping[str, float],
    report: Location,
) -> None:
    """Write what an evaluation measured beside the run."""
    record = EvaluationScores(evaluation_name(config), dict(scores), report.uri)
    CheckpointScores(run.folder).write(checkpoint.step, weights_of(run.checkpoints, checkpoint), record)
