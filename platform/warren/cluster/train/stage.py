"""One training stage on a cluster: Ray Data feeds DeepSpeed workers that Ray Train starts, watches and restarts."""

import gc
import math
import sys
import time
import uuid
from typing import Any

import ray
import ray.train
import torch.distributed as dist
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.collective import broadcast_from_rank_zero
from ray.train.torch import TorchConfig

from warren.cluster.capacity import wanted
from warren.cluster.train.elastic import CheckpointBeforeResize
from warren.cluster.train.failure_policy import FailureNotice, FailurePolicy, must_stop
from warren.cluster.train.monitor import Progress, start_monitor
from warren.cluster.train.placement_group import RecordPlacementGroup, remove_group
from warren.cluster.train.preparation import Stage, TrainingTask, prepare
from warren.cluster.train.run_dataset import DATASET, GlobalBatches, RemainingPlan, batch_parts
from warren.compat.ray_train import ElasticTrainer, look_after_workers_every, reconsider_workers_after
from warren.config import Recipe, Resources
from warren.errors import CheckpointError, DamagedCheckpointError, ServiceError, WarrenError, root_cause
from warren.storage import Location
from warren.train.averaging import refuse_to_train
from warren.train.checkpoint import CheckpointManifest
from warren.train.damaged_checkpoints import newest_intact
from warren.train.origin import Origin, frozen_digest
from warren.train.report import losses_of_data, read_metrics, write_report
from warren.train.run import Run
from warren.train.trackers import open_trackers


def run_name(recipe: Recipe, stage: Stage) -> str:
    """Name a stage's run when nobody named it."""
    return f"{recipe.name}-{stage}"


def train_stage(
    recipe: Recipe,
    stage: Stage,
    resources: Resources,
    root: Location,
    name: str,
    parent: str | None = None,
    model: Location | None = None,
) -> Run:
    """Train a stage to its end, resuming it where it stopped.

    Args:
        name: The run's name; the same name goes on with the same run.
        parent: The run whose last checkpoint the stage starts from.
        model: The model folder it starts from instead.

    Raises:
        WarrenError: The run cannot start or go on; the message says why.
    """
    refuse_to_train(recipe)
    run = Run.of(root, name)
    origin = Origin.of_folder(model) if model else None
    if parent is not None:
        origin = Origin.of_run(Run.of(root, parent))
    latest = newest_intact(run)
    task = prepare(recipe, stage, resources, run, latest, origin)
    num_steps = task.stream.plan().num_steps
    if latest is not None and latest.step >= num_steps:
        return run
    task.begin(latest)
    look_after_workers_every(0.5)
    if isinstance(resources.num_workers, tuple):
        reconsider_workers_after(10)
    monitor = start_monitor()
    trackers = open_trackers(resources.trackers, task.run, task.record, latest.step if latest else 0)
    workers = wanted(resources.num_workers, "workers", resources.cpus_per_worker, resources.gpus_per_worker)
    with Progress(monitor, task.run.name, num_steps, trackers, workers):
        FailurePolicy(
            attempt=lambda: _attempt_until_intact(task, monitor),
            is_complete=lambda: _is_complete(task.run, num_steps),
            on_failure=lambda: _after_failure(monitor),
            max_failures=resources.max_failures,
            max_preemptions=resources.max_preemptions,
        ).run()
    recoveries = ray.get(monitor.recoveries.remote())
    _write_recoveries(task.run, recoveries)
    report = write_report(task.run, task.record, recoveries)
    print("\n".join([*losses_of_data(name, read_metrics(run)[-1]), f"report: {report}"]), file=sys.stderr)
    return task.run


def _after_failure(monitor: Any) -> None:
    ray.get(monitor.mark.remote("failed", time.time()))
    remove_group(monitor)


def _is_complete(run: Run, num_steps: int) -> bool:
    latest = run.checkpoints.latest()
    return latest is not None and latest.step >= num_steps


def _attempt_until_intact(task: TrainingTask, monitor: Any) -> None:
    """Run an attempt; one whose workers found their checkpoint damaged is followed by one from an older checkpoint."""
    newest_intact(task.run)
    while True:
        try:
            return _attempt(task, monitor)
        except DamagedCheckpointError as error:
            ray.get(monitor.mark.remote("failed", time.time()))
            newest_intact(task.run, str(error))


def _attempt(task: TrainingTask, monitor: Any) -> None:
    """Start workers under a controller of Ray Train, and wait until they have ended."""
    resources = task.resources
    ElasticTrainer(
        _train_worker,
        train_loop_config={"task": task, "board": monitor},
        torch_config=TorchConfig(
            backend="nccl" if resources.gpus_per_worker else "gloo", timeout_s=math.ceil(resources.group_timeout_s)
        ),
        scaling_config=ScalingConfig(
            num_workers=resources.num_workers,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker={"CPU": resources.cpus_per_worker, "GPU": resources.gpus_per_worker},
            elastic_resize_monitor_interval_s=resources.elastic_check_s,
        ),
        datasets={DATASET: RemainingPlan(task.run, task.stream)},
        dataset_config=GlobalBatches(task.stream, resources),
        run_config=_ray_run_config(task, monitor),
    ).fit()
    failed = ray.get(monitor.take_error.remote())
    if failed is not None:
        raise failed


def _write_recoveries(run: Run, recoveries: list[dict[str, Any]]) -> None:
    """Write down how long the run was away, each time its workers were lost."""
    if recoveries:
        (run.folder / "recoveries" / f"{int(time.time())}.json").create_json(recoveries)


def _ray_run_config(task: TrainingTask, monitor: Any) -> RunConfig:
    """Give Ray Train a folder of its own for each attempt: Warren's checkpoints are the only state that resumes."""
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


def _train_worker(config: dict[str, Any]) -> None:
    """Run on every rank. An error that Warren understands ends the run; anything else Ray Train may retry."""
    task, monitor = config["task"], config["board"]
    try:
        _train_on_this_rank(task, monitor)
    except Exception as error:
        known = root_cause(error)
        if not isinstance(known, WarrenError) or isinstance(known, ServiceError):
            raise
        ray.get(monitor.fail.remote(known))
        if dist.is_initialized():
            dist.destroy_process_group()  # ranks that still wait for this one see a closed connection, and end


def _train_on_this_rank(task: TrainingTask, monitor: Any) -> None:
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    if rank == 0:
        monitor.mark.remote("entered", time.time())
    start = _start(task, rank)
    cut = task.stream.cut(world_size, task.resources)
    shard = ray.train.get_dataset_shard(DATASET)
    batches = batch_parts(shard, task.stream, cut, rank, start.step if start else 0)
    # Seconds of imports: after the call above, so that the first batches are read meanwhile. A fifth of them would be
    # looking for garbage, of which there is none.
    gc.disable()
    try:
        from warren.train.loop import TrainingLoop
        from warren.train.ranks import Ranks
        from warren.train.validation import read_parts

        model = _model(task)
    finally:
        gc.enable()

    ranks = Ranks(rank, context.get_local_rank(), world_size)
    held_out = task.held_out
    record = {**task.record, "frozen": frozen_digest(model)}
    _check_frozen(start, record)
    loop = TrainingLoop(
        run=task.run,
        stage=task.config,
        resources=task.resources,
        cut=cut,
        num_steps=task.stream.plan().num_steps,
        num_epoch_samples=sum(source.samples_per_epoch for source in task.stream.sources),
        ranks=ranks,
        inputs=task.stream.inputs,
        tokenizer_json=task.stream.encoding.tokenizer_json,
        record=record,
        origin=task.origin.model.uri if task.origin else None,
        on_step=monitor.pin.remote,
        on_ready=lambda: monitor.mark.remote("loaded", time.time()),
        must_stop=lambda: must_stop(monitor),
        held_out=lambda: read_parts(held_out, cut, rank) if held_out else (),
    )
    loop.train(model, batches, start)
    monitor.note_stopped.remote()


def _start(task: TrainingTask, rank: int) -> CheckpointManifest | None:
    """Return the checkpoint to go on from: rank 0 looks it up, so that all ranks take the same."""
    latest = task.run.checkpoints.latest() if rank == 0 else None
    step: int | None = broadcast_from_rank_zero(latest.step if latest else None)
    return latest if rank == 0 or step is None else task.run.checkpoints.read(step)


def _model(task: TrainingTask) -> Any:
    """Make the model as the stage begins with it, also to go on: checkpoints hold what trains and nothing frozen."""
    from warren.models import TrainedTokenizer, add_adapters, build_model, freeze_all_but, unfold_head

    if task.origin is not None:
        model: Any = task.origin.load()
    else:
        model = build_model(task.recipe.require("model"), TrainedTokenizer(**(task.tokenizer or {})), task.config.seed)
    unfold_head(model)
    if task.config.lora is not None:
        add_adapters(model, task.config.lora, task.config.seed)
    freeze_all_but(model, task.config.trainable)
    return model


def _check_frozen(start: CheckpointManifest | None, record: dict[str, Any]) -> None:
    if start is not None and start.run.get("frozen") != record["frozen"]:
        raise CheckpointError(
            f"the checkpoint at step {start.step} was trained around other frozen weights than those there are now: "
            f"what the run started from ({record['origin'] or 'the pretrained parts'}) has changed, put it back"
        )
