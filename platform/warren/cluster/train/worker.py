"""What a worker of a training stage does on its rank, from the start to the last step."""

import gc
import time
from typing import TYPE_CHECKING, Any

import ray
import ray.train
import torch.distributed as dist

from warren.cluster.train.failure_policy import must_stop
from warren.cluster.train.preparation import TrainingTask
from warren.cluster.train.run_dataset import DATASET, batch_parts
from warren.data.batch import Cut
from warren.errors import CheckpointError, ServiceError, WarrenError, root_cause
from warren.train.checkpoint import CheckpointManifest
from warren.train.initial_model import frozen_digest
from warren.train.run_record import RunRecord

if TYPE_CHECKING:
    from warren.train.loop import TrainingSetup
    from warren.train.ranks import Ranks


def train_worker(config: dict[str, Any]) -> None:
    """Train on this rank; Ray Train calls it with its `train_loop_config`.

    A `WarrenError` ends the run: it is reported to the run monitor and the worker returns, so that Ray Train does not
    retry it. Every other error is raised, and Ray Train may start the workers again.

    Args:
        config: `task` is the `TrainingTask`, `monitor` the run monitor.
    """
    task, monitor = config["task"], config["monitor"]
    try:
        _train(task, monitor)
    except Exception as error:
        known = root_cause(error)
        if not isinstance(known, WarrenError) or isinstance(known, ServiceError):
            raise
        ray.get(monitor.report_error.remote(known))
        if dist.is_initialized():
            dist.destroy_process_group()  # ranks that still wait for this one see a closed connection, and end


def _train(task: TrainingTask, monitor: Any) -> None:
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    if rank == 0:
        monitor.record_event.remote("started", time.time())
    start: CheckpointManifest | None = ray.get(monitor.start.remote())
    cut = task.stream.cut(world_size, task.resources)
    shard = ray.train.get_dataset_shard(DATASET)
    batches = batch_parts(shard, task.stream, cut, rank, start.step if start else 0)
    # The imports take seconds. They come after the call above, so that the first batches are read meanwhile, and
    # without garbage collection, which would take a fifth of that time and find nothing.
    gc.disable()
    try:
        from warren.train.ranks import Ranks

        model = stage_model(task)
        setup = _setup(task, Ranks(rank, context.get_local_rank(), world_size), cut, frozen_digest(model))
    finally:
        gc.enable()
    _check_frozen(start, setup.record)
    loop = setup.build(
        model,
        start,
        on_step=monitor.report_metrics.remote,
        on_ready=lambda: monitor.record_event.remote("loaded", time.time()),
        must_stop=lambda: must_stop(monitor),
        on_checkpoint=monitor.report_checkpoint.remote,
    )
    loop.train(batches)
    monitor.report_stopped.remote()


def _setup(task: TrainingTask, ranks: "Ranks", cut: Cut, frozen: str) -> "TrainingSetup":
    from warren.train.loop import TrainingSetup
    from warren.train.validation import read_parts

    held_out = task.held_out
    return TrainingSetup(
        run=task.run,
        stage=task.config,
        resources=task.resources,
        cut=cut,
        num_steps=task.stream.plan().num_steps,
        num_epoch_samples=sum(source.samples_per_epoch for source in task.stream.sources),
        ranks=ranks,
        inputs=task.stream.inputs,
        tokenizer_json=task.stream.encoding.tokenizer_json,
        record={**task.record, "frozen": frozen},
        initial_model_uri=task.initial_model.folder.uri if task.initial_model else None,
        held_out=lambda: read_parts(held_out, cut, ranks.rank) if held_out else (),
        evaluation=task.evaluation,
    )


def stage_model(task: TrainingTask) -> Any:
    """Build the model that the stage began with, for a resumed run too: checkpoints hold no frozen weights."""
    from warren.models import add_adapters, build_model, freeze_all_but, unfold_head

    if task.initial_model is not None:
        model: Any = task.initial_model.load()
    else:
        assert task.tokenizer is not None, "a stage without an initial model has a tokenizer"
        model = build_model(task.recipe.require("model"), task.tokenizer, task.config.seed)
    unfold_head(model)
    if task.config.lora is not None:
        add_adapters(model, task.config.lora, task.config.seed)
    freeze_all_but(model, task.config.trainable)
    return model


def _check_frozen(start: CheckpointManifest | None, record: RunRecord) -> None:
    if start is not None and start.run.get("frozen") != record["frozen"]:
        raise CheckpointError(
            f"the checkpoint at step {start.step} was trained around other frozen weights than those there are now: "
            f"what the run started from ({record['origin'] or 'the pretrained parts'}) has changed, put it back"
        )
