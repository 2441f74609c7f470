"""Training without Ray: ranks as plain processes over gloo, with the real loop, engine, objective and reader."""

import math
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from factories import tiny_model_config
from warren.cluster.train.preparation import TrainingTask
from warren.config import ModelConfig, Resources, StageConfig, ZeroStage
from warren.data.batch import BatchPart, Cut
from warren.data.manifest import dataset_folder, read_manifest
from warren.data.model_inputs import Inputs
from warren.data.stream import DatasetSource, Encoding, StreamSpec
from warren.storage import Location
from warren.train.run import Run
from warren.train.run_record import RunRecord

TIMEOUT_S = 240
STEPS = 6


@dataclass(frozen=True)
class Training:
    """One run of a stage, as its processes get it."""

    root: Location
    name: str
    stage: StageConfig
    inputs: tuple[Inputs, str]
    zero_stage: ZeroStage = 2
    micro_batch_size: int = 2
    changes: dict[str, Any] | None = None  # of the resources
    model: ModelConfig | None = None
    prepare: Callable[[Any, Any, int], None] | None = None  # called with loop, model and rank before it trains

    @property
    def run(self) -> Run:
        return Run(self.root / "runs" / self.name)

    def train(self, world_size: int) -> list[list[dict[str, Any]]]:
        """Train to the end, from the newest checkpoint on; return every rank's metrics."""
        return in_processes(world_size, _train, self)


def in_processes(world_size: int, target: Callable[..., Any], *args: Any) -> list[Any]:
    """Run `target(rank, world_size, *args)` in one process group and return the results by rank.

    The first error, by rank, is raised here.
    """
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # of the server, which imports once for all processes
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["deepspeed", "warren.train.loop", "warren.models"])
    with TemporaryDirectory(prefix="warren-group-") as folder:
        pipes, processes = [], []
        for rank in range(world_size):
            mine, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(theirs, folder, rank, world_size, target, args), daemon=True)
            process.start()
            theirs.close()
            pipes.append(mine)
            processes.append(process)
        results = [_receive(pipe) for pipe in pipes]
        for process in processes:
            process.join(10)
            process.kill()
    errors = [result for result in results if isinstance(result, BaseException)]
    if errors:
        raise min(errors, key=lambda error: isinstance(error, ProcessEndedError | RuntimeError))
    return results


class ProcessEndedError(Exception):
    """A process ended without a word, as after SIGKILL."""


def _receive(pipe: Connection) -> Any:
    if not pipe.poll(TIMEOUT_S):
        return TimeoutError(f"no answer in {TIMEOUT_S} s")
    try:
        return pipe.recv()
    except EOFError:
        return ProcessEndedError()


def _child(
    pipe: Connection, folder: str, rank: int, world_size: int, target: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    import torch
    import torch.distributed as dist

    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), DS_ACCELERATOR="cpu")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=world_size)
    try:
        pipe.send(target(rank, world_size, *args))
    except Exception as error:
        traceback.print_exc()
        pipe.send(error)


def parts(spec: StreamSpec, cut: Cut, rank: int, start: int) -> Iterator[BatchPart]:
    """Yield a rank's parts as Ray Data's task would."""
    reader = spec.reader(cut)
    for window in spec.reads(start):
        for shares in reader.read(window):
            yield shares[rank]


def _train(rank: int, world_size: int, training: Training) -> list[dict[str, Any]]:
    from warren.models import build_model, freeze_all_but, train_tokenizer

    stage = training.stage
    resources = Resources(
        num_workers=world_size,
        zero_stage=training.zero_stage,
        micro_batch_size=training.micro_batch_size,
        **(training.changes or {}),
    )
    tokenizer = train_tokenizer(["USER: what colour is number 3? ASSISTANT: red green blue black"] * 4, 320)
    model = build_model(training.model or tiny_model_config(), tokenizer, stage.seed)
    freeze_all_but(model, stage.trainable)
    spec = _stream(training)
    held_out = replace(spec, num_steps=2, epochs=None)
    record = {"fingerprint": "f"}
    return _loop(rank, training.run, stage, resources, spec, held_out, record, model, prepare=training.prepare)


def train_plainly(task: TrainingTask) -> Run:
    """Train a new run as a cluster would, without one: its ranks are plain processes that read for themselves."""
    task.begin(None)
    in_processes(task.resources.max_workers, _train_task, task)
    return task.run


def _train_task(rank: int, world_size: int, task: TrainingTask) -> None:
    from warren.cluster.train.worker import stage_model
    from warren.train.initial_model import frozen_digest

    model = stage_model(task)
    record = {**task.record, "frozen": frozen_digest(model)}
    initial_model_uri = task.initial_model.folder.uri if task.initial_model else None
    _loop(rank, task.run, task.config, task.resources, task.stream, task.held_out, record, model, initial_model_uri)


def _loop(
    rank: int,
    run: Run,
    stage: StageConfig,
    resources: Resources,
    spec: StreamSpec,
    held_out: StreamSpec | None,
    record: dict[str, Any],
    model: Any,
    initial_model_uri: str | None = None,
    prepare: Callable[[Any, Any, int], None] | None = None,
) -> list[dict[str, Any]]:
    from warren.train.loop import TrainingSetup
    from warren.train.ranks import Ranks
    from warren.train.validation import read_parts

    cut = spec.cut(resources.max_workers, resources)
    start = run.checkpoints.latest()
    setup = TrainingSetup(
        run=run,
        stage=stage,
        resources=resources,
        cut=cut,
        num_steps=spec.plan().num_steps,
        num_epoch_samples=sum(source.samples_per_epoch for source in spec.sources),
        ranks=Ranks(rank, rank, resources.max_workers),
        inputs=spec.inputs,
        tokenizer_json=spec.encoding.tokenizer_json,
        record=cast(RunRecord, record),
        initial_model_uri=initial_model_uri,
        held_out=lambda: read_parts(held_out, cut, rank) if held_out else (),
    )
    loop = setup.build(model, start)
    if prepare is not None:
        prepare(loop, model, rank)
    loop.train(parts(spec, cut, rank, start.step if start else 0))
    return cast(list[dict[str, Any]], loop.history)


def _stream(training: Training) -> StreamSpec:
    stage, (inputs, tokenizer_json) = training.stage, training.inputs
    assert stage.dataset is not None
    manifest = read_manifest(training.root, stage.dataset)
    return StreamSpec(
        sources=(DatasetSource(dataset_folder(training.root, stage.dataset), manifest, manifest.rows),),
        encoding=Encoding(inputs, tokenizer_json, stage.max_length_tokens),
        global_batch_size=stage.global_batch_size,
        seed=stage.seed,
        window_samples=stage.shuffle_window_samples,
        num_steps=stage.duration.steps,
        epochs=stage.duration.epochs,
    )


def scratch(tmp_path: Path) -> Location:
    """Return a storage root in a test's own folder."""
    return Location.parse(str(tmp_path / "store"))


_SAME = ("step", "samples", "supervised_tokens", "tokens", "images", "learning_rate")


def computed(row: dict[str, Any]) -> list[float]:
    """Return what a step computed: its losses and its gradient's norm."""
    return [row["loss"], row["grad_norm"], row.get("validation_loss", 0.0)]


def assert_same_curve(rows: list[dict[str, Any]], curve: list[dict[str, Any]], rel: float = 2e-5) -> None:
    """Compare the metrics of two runs, step by step: what was trained on exactly, what was computed to rounding."""
    for row, expected in zip(rows, curve, strict=True):
        close = [math.isclose(*pair, rel_tol=rel) for pair in zip(computed(row), computed(expected), strict=True)]
        assert all(close), (row["step"], computed(row), computed(expected))
        assert [row[key] for key in _SAME] == [expected[key] for key in _SAME]


def at_step(loop: Any, step: int, action: Callable[[], None]) -> None:
    """Run `action` when the loop asks for the batch of a step."""
    asked = loop._next_part

    def ask(number: int, batches: Any) -> Any:
        if number == step:
            action()
        return asked(number, batches)

    loop._next_part = ask
