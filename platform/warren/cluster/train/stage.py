"""The driver of a training stage: it prepares the run, starts its attempts one after the other, and reports."""

import math
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig

from warren.cluster.capacity import size_of
from warren.cluster.train.checkpoint_evaluator import CheckpointEvaluator
from warren.cluster.train.checkpoint_tasks import CheckpointWork
from warren.cluster.train.elastic import CheckpointBeforeResize
from warren.cluster.train.failure_policy import FailureNotice, FailurePolicy
from warren.cluster.train.monitor import start_monitor
from warren.cluster.train.placement_group import RecordPlacementGroup, remove_group
from warren.cluster.train.preparation import Stage, TrainingTask, prepare
from warren.cluster.train.progress import Progress
from warren.cluster.train.run_dataset import DATASET, GlobalBatches, RemainingPlan
from warren.cluster.train.worker import train_worker
from warren.compat.ray_train import ElasticTrainer, look_after_workers_every, reconsider_workers_after
from warren.config import Recipe, Resources
from warren.errors import DamagedCheckpointError
from warren.evaluate.recipe_evaluations import check_evaluations
from warren.storage import Location
from warren.train.damaged_checkpoints import newest_intact
from warren.train.initial_model import InitialModel
from warren.train.recovery_time import Recovery, write_recoveries
from warren.train.run import Run
from warren.train.run_report import losses_of_data, read_metrics, write_report
from warren.train.trackers import open_trackers


def run_name(recipe: Recipe, stage: Stage) -> str:
    """Return the default name of a stage's run."""
    return f"{recipe.name}-{stage}"


def train_stage(
    recipe: Recipe,
    stage: Stage,
    resources: Resources,
    root: Location,
    name: str,
    parent: str | None = None,
    model: Location | None = None,
    options: str | None = None,
) -> Run:
    """Train a stage to its end, resuming it where it stopped.

    Args:
        name: The run's name; the same name goes on with the same run.
        parent: The run whose last checkpoint the stage starts from.
        model: The model folder it starts from instead.
        options: The options of a job that name recipe, resources and overrides, for messages.

    Raises:
        WarrenError: The run cannot start or go on; the message says why.
    """
    recipe.check_trainable()
    check_evaluations(recipe, root)
    run = Run.of(root, name)
    initial_model = InitialModel.of_folder(model) if model else None
    if parent is not None:
        initial_model = InitialModel.of_run(Run.of(root, parent))
    latest = newest_intact(run)
    task = prepare(recipe, stage, resources, run, latest, initial_model)
    num_steps = task.stream.plan().num_steps
    work = CheckpointWork(recipe, resources, root, run, options or f"--recipe {recipe.name}")
    if latest is not None and latest.step >= num_steps:
        _evaluate_what_is_left(task, work, num_steps)
        return run
    task.begin(latest)
    monitor = start_monitor()
    _run_attempts(task, work, monitor, num_steps, first_step=latest.step if latest else 0)
    recoveries = ray.get(monitor.recoveries.remote())
    write_recoveries(task.run, recoveries)
    _report(task, recoveries)
    return task.run


def _report(task: TrainingTask, recoveries: Sequence[Recovery]) -> None:
    report = write_report(task.run, task.record, recoveries)
    losses = losses_of_data(task.run.name, read_metrics(task.run)[-1])
    print("\n".join([*losses, f"report: {report}"]), file=sys.stderr)


def _evaluate_what_is_left(task: TrainingTask, work: CheckpointWork, num_steps: int) -> None:
    """Evaluate the checkpoints of a run that is trained to its end, as far as they are not."""
    plan = task.evaluation
    if plan is None or not plan.has_more(task.run):
        return
    trackers = open_trackers(task.resources.trackers, task.run, task.record, num_steps)

    def log(step: int, scores: Mapping[str, float], _: str) -> None:
        for tracker in trackers:
            tracker.log_scores(step, scores)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        with CheckpointEvaluator(work, plan, task.config.keep_checkpoints, None, say, log) as evaluator:
            evaluator.finish()
    finally:
        for tracker in trackers:
            tracker.close()
    _report(task, ())


def _run_attempts(task: TrainingTask, work: CheckpointWork, monitor: Any, num_steps: int, first_step: int) -> None:
    """Train until the run is complete, show its progress, and evaluate its checkpoints meanwhile."""
    resources = task.resources
    look_after_workers_every(0.5)
    if isinstance(resources.num_workers, tuple):
        reconsider_workers_after(10)
    trackers = open_trackers(resources.trackers, task.run, task.record, first_step)
    workers = size_of(resources.num_workers, "workers", resources.cpus_per_worker, resources.gpus_per_worker)
    fewest = resources.min_workers * resources.cpus_per_worker, resources.min_workers * resources.gpus_per_worker
    with ExitStack() as held:
        progress = held.enter_context(Progress(monitor, task.run.name, num_steps, trackers, workers, fewest))
        plan, keep = task.evaluation, task.config.keep_checkpoints
        evaluator = None
        if plan is not None:
            evaluator = CheckpointEvaluator(work, plan, keep, monitor, progress.say, progress.show_scores)
            held.enter_context(evaluator)
        FailurePolicy(
            attempt=lambda: _attempt_until_intact(task, monitor),
            is_complete=lambda: _is_complete(task.run, num_steps),
            on_failure=lambda: _after_failure(monitor),
            max_failures=resources.max_failures,
            max_preemptions=resources.max_preemptions,
        ).run()
        if evaluator is not None:
            evaluator.finish()


def _after_failure(monitor: Any) -> None:
    ray.get(monitor.record_event.remote("failed", time.time()))
    remove_group(monitor)


def _is_complete(run: Run, num_steps: int) -> bool:
    latest = run.checkpoints.latest()
    return latest is not None and latest.step >= num_steps


def _attempt_until_intact(task: TrainingTask, monitor: Any) -> None:
    """Run attempts until one does not end because of a damaged checkpoint; each next one starts from an older one."""
    newest_intact(task.run)
    while True:
        try:
            return _attempt(task, monitor)
        except DamagedCheckpointError as error:
            ray.get(monitor.record_event.remote("failed", time.time()))
            newest_intact(task.run, str(error))


def _attempt(task: TrainingTask, monitor: Any) -> None:
    """Start workers under a controller of Ray Train, and wait until they have ended.

    Raises:
        WarrenError: The error that a worker reported.
    """
    resources = task.resources
    plan = RemainingPlan(task.run, task.stream, lambda start: ray.get(monitor.set_start.remote(start)))
    ElasticTrainer(
        train_worker,
        train_loop_config={"task": task, "monitor": monitor},
        torch_config=TorchConfig(
            backend="nccl" if resources.gpus_per_worker else "gloo", timeout_s=math.ceil(resources.group_timeout_s)
        ),
        scaling_config=ScalingConfig(
            num_workers=resources.num_workers,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker={"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker},
            elastic_resize_monitor_interval_s=resources.elastic_check_s,
        ),
        datasets={DATASET: plan},
        dataset_config=GlobalBatches(task.stream, resources),
        run_config=_ray_run_config(task, monitor),
    ).fit()
    error = ray.get(monitor.take_error.remote())
    if error is not None:
        raise error


def _ray_run_config(task: TrainingTask, monitor: Any) -> RunConfig:
    """Configure Ray Train with its own folder for each attempt: only Warren's checkpoints are resumed from."""
    attempts = task.run.folder / "attempts"
    return RunConfig(
        name=uuid.uuid4().hex[:8],
        storage_path=attempts.key,
        storage_filesystem=attempts.filesystem,
        failure_config=FailureConfig(
            max_failures=task.resources.max_failures, max_preemption_failures=task.resources.max_preemptions
        ),
        callbacks=[
            FailureNotice(monitor),
            RecordPlacementGroup(monitor),
            CheckpointBeforeResize(monitor, task.resources.hang_timeout_s),
        ],
    )
