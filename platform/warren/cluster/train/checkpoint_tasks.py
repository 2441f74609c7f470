"""What Ray tasks do with a committed checkpoint beside training: evaluate it, and make a release of it.

Both write what they have done below `scores/` of the run, once. A task that died is started again and goes on.
"""

from dataclasses import dataclass
from functools import partial

from warren.cluster.session import quieten
from warren.config import BenchmarkConfig, EvaluateConfig, Recipe, Resources
from warren.errors import GateError, ServiceError, StorageError, WarrenError, root_cause
from warren.evaluate.recipe_evaluations import missing, options_of
from warren.storage import Location
from warren.train.checkpoint_scores import (
    CheckpointScores,
    EvaluatedCheckpoint,
    EvaluationFailure,
    ReleaseOutcome,
    evaluation_name,
)
from warren.train.run import Run


@dataclass(frozen=True)
class CheckpointWork:
    """What is done with the checkpoints of a run.

    Attributes:
        resources: Of the evaluators, and of the task that makes a release's golden cases.
        root: Where datasets, benchmarks' answers and releases live.
        options: The options of a job that name recipe, resources and overrides, for messages.
    """

    recipe: Recipe
    resources: Resources
    root: Location
    run: Run
    options: str

    def command(self, job: str, step: int) -> str:
        """Return the command that does a job with a checkpoint of the run."""
        return f"python jobs/{job}.py {self.options} --run {self.run.name} --step {step}"

    def fail(self, known: EvaluatedCheckpoint, reason: str) -> None:
        """Write that everything which a checkpoint is not evaluated by yet has failed."""
        for config in missing(self.recipe, list(known.evaluations)):
            self.write_failure(known, config, reason)

    def write_failure(self, known: EvaluatedCheckpoint, config: EvaluateConfig | BenchmarkConfig, reason: str) -> None:
        """Write why an evaluation failed, with the command that runs it again."""
        command = f"{self.command('evaluate', known.step)}{options_of(config)}"
        failure = EvaluationFailure(evaluation_name(config), " ".join(reason.split()), command)
        CheckpointScores(self.run.folder).write_failure(known.step, known.weights, failure)


def evaluate_checkpoint(work: CheckpointWork, checkpoint: EvaluatedCheckpoint) -> None:
    """Evaluate a checkpoint by everything that it was not evaluated by yet; write the reason where that fails.

    Args:
        checkpoint: What is known of it.

    Raises:
        Exception: An evaluation failed for a reason that may pass; nothing was written about it.
    """
    quieten()
    passing = None
    for config in missing(work.recipe, list(checkpoint.evaluations)):
        try:
            _evaluate(work, checkpoint.step, config)
        except Exception as error:
            cause = root_cause(error)
            if isinstance(cause, WarrenError) and not isinstance(cause, ServiceError | StorageError):
                work.write_failure(checkpoint, config, str(cause))
            else:
                passing = passing or cause
    if passing is not None:
        raise passing


def _evaluate(work: CheckpointWork, step: int, config: EvaluateConfig | BenchmarkConfig) -> None:
    from warren.cluster.batch.checkpoint_evaluation import evaluate_on_benchmark, evaluate_on_dataset

    if isinstance(config, EvaluateConfig):
        evaluate_on_dataset(config, work.resources, work.root, work.run, step)
    else:
        evaluate_on_benchmark(config, work.resources, work.root, work.run, step)


def release_checkpoint(work: CheckpointWork, checkpoint: EvaluatedCheckpoint) -> None:
    """Make a release of an evaluated checkpoint and call it `candidate`, or write that the gate refused it."""
    from warren.cluster.serve.engine_probe import probe_engine
    from warren.cluster.serve.golden_task import write_golden
    from warren.cluster.serve.publish_and_deploy import make_release

    quieten()
    golden, probe = partial(write_golden, work.resources), partial(probe_engine, work.resources)
    who = f"training of {work.run.name}"
    measure = f"python jobs/evaluate.py {work.options} --run {work.run.name}"
    manifest = work.run.checkpoints.read(checkpoint.step)
    try:
        released = make_release(
            work.recipe, work.root, work.run, measure, None, who, golden, probe, manifest, once=True
        )
        outcome = ReleaseOutcome(released.version, "; ".join(check.reason for check in released.verdict.checks))
    except GateError as error:
        outcome = ReleaseOutcome(None, " ".join(str(error).split()))
    CheckpointScores(work.run.folder).write_outcome(checkpoint.step, checkpoint.weights, outcome)
