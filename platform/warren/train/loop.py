"""The training loop of one rank: it turns batch parts into steps, metrics and checkpoints. It imports no Ray."""

import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from warren.config import Resources, StageConfig
from warren.data.batch import BatchPart, Cut
from warren.data.model_inputs import Inputs
from warren.data.quarantine import Quarantine
from warren.errors import QuarantineError, TrainingError
from warren.models.vlm import recompute_activations
from warren.storage import FileEntry
from warren.train.checkpoint import RANKS_FOLDER, CheckpointManifest
from warren.train.checkpoint_loader import (
    fetch,
    random_state_file,
    read_history,
    read_random_state,
    resizes,
    seed_everything,
)
from warren.train.checkpoint_writer import CheckpointWriter, Snapshot, on_the_host
from warren.train.engine import TrainingEngine
from warren.train.evaluation_plan import EvaluationPlan, prune
from warren.train.flops import FlopsCount
from warren.train.kernels import choose_attention, compile_layers
from warren.train.objective import Objective, to_tensors
from warren.train.out_of_memory import memory_explained
from warren.train.ranks import Ranks
from warren.train.run import Run
from warren.train.run_record import RunRecord
from warren.train.servable_model import Servable
from warren.train.skipped_steps import Guard, gradient_objection
from warren.train.step_meter import StepMeter
from warren.train.step_metrics import CumulativeMetric, OccasionalMetrics, StepMetrics
from warren.train.validation import Validation
from warren.train.watchdog import Watchdog

_ASK_EVERY_S = 5.0
_QUARANTINE_REMEDY = "raise max_quarantined_fraction to go on, or mend the dataset and train on its new version"


@dataclass(frozen=True)
class TrainingSetup:
    """Everything that one rank needs for training; `build` makes the loop.

    Attributes:
        record: The run's record; it goes into every checkpoint.
        initial_model_uri: URI of the model that the stage started from; None if it was built from the recipe.
        held_out: Reads this rank's share of the samples to validate on.
        evaluation: Which checkpoints others evaluate meanwhile, and need; None: none.
    """

    run: Run
    stage: StageConfig
    resources: Resources
    cut: Cut
    num_steps: int
    num_epoch_samples: int
    ranks: Ranks
    inputs: Inputs
    tokenizer_json: str
    record: RunRecord
    held_out: Callable[[], Sequence[BatchPart]] = tuple
    initial_model_uri: str | None = None
    evaluation: EvaluationPlan | None = None

    def build(
        self,
        model: torch.nn.Module,
        start: CheckpointManifest | None,
        on_step: Callable[[StepMetrics], None] = lambda _: None,
        on_ready: Callable[[], None] = lambda: None,
        must_stop: Callable[[], bool] = lambda: False,
        on_checkpoint: Callable[[int, bool], None] = lambda _step, _is_committed: None,
    ) -> "TrainingLoop":
        """Build the loop; every rank must call it at once.

        Args:
            model: The model that the stage started from, for a resumed run too.
            start: The checkpoint to resume from; None starts from the beginning.
            on_step: Called on rank 0 with each step's metrics; must not block.
            on_ready: Called on rank 0 when the checkpoint is loaded, before the first step.
            must_stop: Returns whether to write a checkpoint and stop; called on all ranks at once, every few seconds.
            on_checkpoint: See `CheckpointWriter`'s `on_outcome`.
        """
        return TrainingLoop(self, model, start, on_step, on_ready, must_stop, on_checkpoint)

    def manifest(self, step: int, files: tuple[FileEntry, ...]) -> CheckpointManifest:
        """Return the manifest of the checkpoint at a step."""
        return CheckpointManifest(
            step, self.ranks.world_size, self.resources.zero_stage, self.record["fingerprint"], files, self.record
        )

    def prune(self) -> None:
        """Delete the run's checkpoints that are not kept."""
        prune(self.run, self.stage.keep_checkpoints, self.evaluation)


class TrainingLoop:
    """Trains one stage on one rank; `TrainingSetup.build` makes it.

    Attributes:
        history: The metrics of every step since the run's beginning; rank 0 alone adds those of this attempt.
    """

    def __init__(
        self,
        setup: TrainingSetup,
        model: torch.nn.Module,
        start: CheckpointManifest | None,
        on_step: Callable[[StepMetrics], None],
        on_ready: Callable[[], None],
        must_stop: Callable[[], bool],
        on_checkpoint: Callable[[int, bool], None],
    ) -> None:
        self.run, self.stage, self.resources, self.ranks = setup.run, setup.stage, setup.resources, setup.ranks
        self.on_step, self.on_ready, self.must_stop = on_step, on_ready, must_stop
        self.history: list[StepMetrics] = []
        self._setup, self._model, self._start = setup, model, start
        self._attempt = self.ranks.same_everywhere(uuid.uuid4().hex[:8])
        self._servable = Servable(model, self.stage, setup.inputs, setup.tokenizer_json, setup.initial_model_uri)
        self._quarantine = Quarantine(
            self.run.folder / "quarantine", self.stage.max_quarantined_fraction, _QUARANTINE_REMEDY
        )
        self._guard = Guard(self.stage.guard, self.run.folder / "skipped")
        validation = self.stage.validation
        self._validation = Validation(setup.held_out, validation.every_steps) if validation else None
        self._writer = CheckpointWriter(
            self.run.checkpoints, self.ranks, self._attempt, setup.manifest, setup.prune, on_checkpoint
        )
        stacks = self.run.folder / "stacks" / f"{self._attempt}-rank-{self.ranks.rank:05d}.txt"
        self._watchdog = Watchdog(self.resources.hang_timeout_s, stacks)
        self._meter = StepMeter(self.ranks, FlopsCount.of(model), self.resources.peak_tflops_per_worker)
        self._polled = time.monotonic()

    def train(self, batches: Iterator[BatchPart]) -> None:
        """Train from the start to the last step, and commit the final checkpoint.

        If `must_stop` returns true, it commits a checkpoint of the current step and returns early.

        Args:
            batches: This rank's parts from the first step on.
        """
        first_step, num_steps = self._start.step if self._start else 0, self._setup.num_steps
        with self._watchdog:
            folder = self._fetch()
            self._engine  # noqa: B018  builds it
            if folder is not None and self._start is not None:
                self._restore(folder, self._start.world_size)
            self._model.train()
            self._polled = time.monotonic()
            if self.ranks.rank == 0:
                self.on_ready()
            for step in range(first_step, num_steps):
                self._watchdog.alive(f"training step {step}")
                must_poll = self._step(step, batches)
                stops = must_poll and self.must_stop()
                if stops or (step + 1) % self.stage.checkpoint_every_steps == 0 or step + 1 == num_steps:
                    with self._meter.stalled():
                        self._checkpoint(step + 1)
                if stops:
                    break
            self._watchdog.alive("waiting for the last checkpoint's upload")
            self._writer.finish()

    @cached_property
    def _engine(self) -> TrainingEngine:
        """The engine. Building it is slow and waits for other ranks, so it is built after the watchdog has started."""
        if self.resources.gradient_checkpointing:
            recompute_activations(self._model)
        # Each rank draws its own dropout; the global seed would give all ranks the same noise.
        seed_everything(self.stage.seed + self.ranks.rank)
        choose_attention(self._model, self.resources)
        if self.resources.compile:
            compile_layers(self._model)
        objective = Objective(self._model, self._setup.inputs)
        universal = resizes(self._start, self.ranks.world_size, self.resources.zero_stage)
        return TrainingEngine(objective, self.stage, self.resources, self._setup.cut, self._setup.num_steps, universal)

    def _fetch(self) -> Path | None:
        """Download the state to resume from; None at the run's beginning."""
        if self._start is None:
            return None
        return fetch(self.run.checkpoints, self._start, self.ranks, self.resources.zero_stage, self._attempt)

    def _restore(self, folder: Path, world_size: int) -> None:
        """Restore weights, optimizer, schedule, metrics, and random state unless there are other ranks than then."""
        self._engine.load(folder)
        # With another number of ranks there is no state of the same rank to go on with.
        if world_size == self.ranks.world_size:
            read_random_state(folder / RANKS_FOLDER / random_state_file(self.ranks.rank))
        self.history[:] = read_history(folder)
        self._guard.follow(self.history)
        self.ranks.together(lambda: None)  # all ranks of the node have read it
        shutil.rmtree(folder, ignore_errors=True)

    def _step(self, step: int, batches: Iterator[BatchPart]) -> bool:
        """Train one step; return whether it is time to ask if the run must stop, the same on all ranks."""
        with self._meter.waiting():
            part = self._next_part(step, batches)
        share = self._forward_backward(part)
        self._meter.count(part, self._engine.forward_done)
        polls = time.monotonic() - self._polled > _ASK_EVERY_S
        # One all-reduce a step carries everything that the ranks must agree on.
        loss, num_busy, num_polling, *counts = self.ranks.total(
            [share, float(self._writer.busy), float(polls), *self._meter.counts()], self._engine.device
        )
        row = self._optimize(step, part, loss, counts)
        self._watch(step, row, part)
        if self.ranks.rank == 0:
            self.history.append(row)
            self.on_step(row)
        with self._meter.stalled():
            self._writer.advance(int(num_busy))
        if num_polling:
            self._polled = time.monotonic()
        return num_polling > 0

    def _forward_backward(self, part: BatchPart) -> torch.Tensor:
        """Compute this rank's share of the gradient, and return its share of the loss."""
        share = torch.zeros((), device=self._engine.device)
        with memory_explained(self.resources, part):
            for micro_batch in part.micro_batches:
                tensors = to_tensors(micro_batch, self._engine.device)
                is_last = micro_batch is part.micro_batches[-1]
                share += self._engine.forward_backward(tensors, part.num_supervised_tokens, is_last)
        return share

    def _optimize(self, step: int, part: BatchPart, loss: float, counts: Sequence[float]) -> StepMetrics:
        """Take the optimizer step unless it would do harm, and return the step's metrics."""
        skipped, loss_scale = self._guard.objection(loss), self._engine.loss_scale
        grad_norm, learning_rate = self._engine.step(skip=bool(skipped))
        return {
            "step": step,
            "epoch": part.epoch,
            "loss": loss,
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
            "samples": part.num_samples,
            "samples_quarantined": self._so_far("samples_quarantined", len(part.quarantined)),
            "samples_cut": self._so_far("samples_cut", part.num_cut_samples),
            "supervised_tokens_cut": self._so_far("supervised_tokens_cut", part.num_cut_tokens),
            "supervised_tokens": part.num_supervised_tokens,
            "padding_fraction": part.padding_fraction,
            "skipped": skipped or gradient_objection(grad_norm, loss_scale),
            **self._occasional(step + 1, loss_scale),
            **self._meter.finish(part, counts, self._engine.device),
        }

    def _so_far(self, name: CumulativeMetric, in_step: int) -> int:
        """Add this step's count to that of all steps before it."""
        before = self.history[-1].get(name, 0) if self.history else 0
        return before + in_step

    def _occasional(self, num_steps_taken: int, loss_scale: float | None) -> OccasionalMetrics:
        """Return fp16's loss scale, and the loss on held-out samples where it is due."""
        metrics: OccasionalMetrics = {} if loss_scale is None else {"loss_scale": loss_scale}
        if self._validation is not None and self._validation.is_due(num_steps_taken, self._setup.num_steps):
            began = time.perf_counter()
            metrics["validation_loss"] = self._validation.loss(self._engine, self.ranks)
            metrics["validation_s"] = time.perf_counter() - began
        return metrics

    def _watch(self, step: int, row: StepMetrics, part: BatchPart) -> None:
        """End a run with too many skipped steps or unusable samples. All ranks have the same metrics, so all end it."""
        keys: list[str] = []
        if row["skipped"]:
            keys = [key for keys in self.ranks.together(lambda: part.keys) for key in keys]
        self._guard.judge(row, keys, writes=self.ranks.rank == 0)
        try:
            self._quarantine.add(step, part.quarantined, self._setup.num_epoch_samples)
        except QuarantineError:
            if self.ranks.rank == 0:
                self._quarantine.write(step)
            raise

    def _next_part(self, step: int, batches: Iterator[BatchPart]) -> BatchPart:
        part = next(batches, None)
        if part is None:
            raise TrainingError(f"the data stream ended before step {step} of {self._setup.num_steps}")
        if (part.step, part.rank) != (step, self.ranks.rank):
            # Ray Data deals rows out round-robin; training on another rank's share would silently change the batch.
            raise TrainingError(
                f"rank {self.ranks.rank} expected its share of step {step}, but got rank {part.rank}'s of step "
                f"{part.step}"
            )
        return part

    def _checkpoint(self, step: int) -> None:
        """Take the checkpoint of `step` and start its upload."""
        model_state = self._engine.model_state()  # a collective: every rank must call it
        snapshot = None
        if self.ranks.rank == 0:
            self._quarantine.write(step)
            snapshot = Snapshot(self._servable, on_the_host(model_state), tuple(self.history))
        self._writer.begin(step, self._engine.save, self._engine.state_bytes(), snapshot)
