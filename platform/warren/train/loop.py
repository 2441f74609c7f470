"""The training loop of one rank: batch parts in, steps, metrics and checkpoints out. It knows nothing of Ray."""

import math
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from warren.config import Resources, StageConfig
from warren.data.batch import BatchPart, Cut
from warren.data.model_inputs import Inputs
from warren.data.quarantine import Quarantine
from warren.errors import QuarantineError, TrainingError
from warren.models.vlm import recompute_activations
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
from warren.train.flops import FlopsCount
from warren.train.guards import Guard, overflow
from warren.train.kernels import choose_attention, compile_layers
from warren.train.metrics import StepMeter
from warren.train.objective import Objective, to_tensors
from warren.train.out_of_memory import memory_explained
from warren.train.ranks import Ranks
from warren.train.run import Run
from warren.train.servable import Servable
from warren.train.validation import Validation
from warren.train.watchdog import Watchdog

StepMetrics = dict[str, Any]
_ASK_EVERY_S = 5.0
_QUARANTINE_REMEDY = "raise max_quarantined_fraction to go on, or mend the dataset and train on its new version"


@dataclass
class TrainingLoop:
    """Trains one stage on one rank.

    Attributes:
        record: What the run was; goes into every checkpoint.
        origin: Where the model that the stage started from is.
        on_step: Called on rank 0 with each step's metrics; must not block.
        on_ready: Called on rank 0 when the checkpoint is loaded, before the first step.
        gives_way: Tells whether to stop for now; called on all ranks at once, every few seconds.
        held_out: Reads this rank's share of the samples to validate on.
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
    record: StepMetrics
    on_step: Callable[[StepMetrics], None]
    on_ready: Callable[[], None] = lambda: None
    must_stop: Callable[[], bool] = lambda: False
    held_out: Callable[[], Sequence[BatchPart]] = tuple
    origin: str | None = None
    history: list[StepMetrics] = field(default_factory=list)

    def train(self, model: torch.nn.Module, batches: Iterator[BatchPart], start: CheckpointManifest | None) -> None:
        """Train from `start` (None: from the beginning) to the last step, and commit the final checkpoint.

        When it has to give way, it commits a checkpoint where it stands and returns early.
        """
        self._prepare(model)
        stacks = self.run.folder / "stacks" / f"{self._attempt}-rank-{self.ranks.rank:05d}.txt"
        with Watchdog(self.resources.hang_timeout_s, stacks) as self._watchdog:
            self._start_engine(model, start)
            model.train()
            self._asked = time.monotonic()
            if self.ranks.rank == 0:
                self.on_ready()
            for step in range(start.step if start else 0, self.num_steps):
                self._watchdog.alive(f"training step {step}")
                must_ask = self._step(step, batches)
                stops = must_ask and self.must_stop()
                if stops or (step + 1) % self.stage.checkpoint_every_steps == 0 or step + 1 == self.num_steps:
                    with self._meter.stalled():
                        self._checkpoint(step + 1)
                if stops:
                    break
            self._watchdog.alive("waiting for the last checkpoint's upload")
            self._writer.finish()

    def _prepare(self, model: torch.nn.Module) -> None:
        self._servable = Servable(model, self.stage, self.inputs, self.tokenizer_json, self.origin)
        self._attempt = self.ranks.same_everywhere(uuid.uuid4().hex[:8])
        self._quarantine = Quarantine(
            self.run.folder / "quarantine", self.stage.max_quarantined_fraction, _QUARANTINE_REMEDY
        )
        self._guard = Guard(self.stage.guard, self.run.folder / "skipped")
        self._meter = StepMeter(self.ranks, FlopsCount.of(model), self.resources.peak_tflops_per_worker)
        validation = self.stage.validation
        self._validation = Validation(self.held_out, validation.every_steps) if validation else None
        self._writer = CheckpointWriter(
            self.run.checkpoints, self.ranks, self._attempt, self._manifest, self.stage.keep_checkpoints
        )

    def _start_engine(self, model: torch.nn.Module, start: CheckpointManifest | None) -> None:
        """Build the engine, and restore weights, optimizer, schedule, random state and metrics from a checkpoint."""
        if self.resources.gradient_checkpointing:
            recompute_activations(model)
        seed_everything(self.stage.seed + self.ranks.rank)
        zero_stage = self.resources.zero_stage
        universal = resizes(start, self.ranks.world_size, zero_stage)
        choose_attention(model, self.resources)
        if self.resources.compile:
            compile_layers(model)
        objective = Objective(model, self.inputs)
        if start is None:
            self._engine = TrainingEngine(objective, self.stage, self.resources, self.cut, self.num_steps)
            return
        folder = fetch(self.run.checkpoints.at(start.step), start, self.ranks, zero_stage, self._attempt)
        self._engine = TrainingEngine(objective, self.stage, self.resources, self.cut, self.num_steps, universal)
        self._engine.load(folder)
        if start.world_size == self.ranks.world_size:
            read_random_state(folder / RANKS_FOLDER / random_state_file(self.ranks.rank))
        self.history[:] = read_history(folder)
        self._guard.follow(self.history)
        self.ranks.together(lambda: None)  # all ranks of the node have read it
        shutil.rmtree(folder, ignore_errors=True)

    def _step(self, step: int, batches: Iterator[BatchPart]) -> bool:
        """Train one step; return whether it is time to ask if the run has to give way, the same on all ranks."""
        with self._meter.waiting():
            part = self._next_part(step, batches)
        share = torch.zeros((), device=self._engine.device)
        with memory_explained(self.resources, part):
            for micro_batch in part.micro_batches:
                tensors = to_tensors(micro_batch, self._engine.device)
                is_last = micro_batch is part.micro_batches[-1]
                share += self._engine.forward_backward(tensors, part.num_supervised_tokens, is_last)
        self._meter.count(part, self._engine.forward_done)
        asks = time.monotonic() - self._asked > _ASK_EVERY_S
        loss, num_busy, num_asking, *counts = self.ranks.total(
            [share, float(self._writer.busy), float(asks), *self._meter.counts()], self._engine.device
        )
        skipped, scale = self._guard.objection(loss), self._engine.loss_scale
        grad_norm, learning_rate = self._engine.step(skip=bool(skipped))
        if not skipped and not math.isfinite(grad_norm):
            skipped = f"the gradient norm is {grad_norm}" if scale is None else overflow(scale)
        row = {
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
            "skipped": skipped,
            **({} if scale is None else {"loss_scale": scale}),
            **self._validated(step + 1),
            **self._meter.finish(part, counts, self._engine.device),
        }
        self._watch(step, row, part)
        if self.ranks.rank == 0:
            self.history.append(row)
            self.on_step(row)
        with self._meter.stalled():
            self._writer.advance(int(num_busy))
        if num_asking:
            self._asked = time.monotonic()
        return num_asking > 0

    def _so_far(self, name: str, found: int) -> int:
        """Add what this step found to what was counted since the run's beginning."""
        before: int = self.history[-1].get(name, 0) if self.history else 0
        return before + found

    def _validated(self, num_steps_taken: int) -> StepMetrics:
        """Return the loss on held-out samples, where it is due."""
        if self._validation is None or not self._validation.is_due(num_steps_taken, self.num_steps):
            return {}
        began = time.perf_counter()
        loss = self._validation.loss(self._engine, self.ranks)
        return {"validation_loss": loss, "validation_s": time.perf_counter() - began}

    def _watch(self, step: int, row: StepMetrics, part: BatchPart) -> None:
        """Stop a run that cannot go well. Every rank sees the same figures, so all stop at the same step."""
        keys: list[str] = []
        if row["skipped"]:
            keys = [key for keys in self.ranks.together(lambda: part.keys) for key in keys]
        self._guard.judge(row, keys, writes=self.ranks.rank == 0)
        try:
            self._quarantine.add(step, part.quarantined, self.num_epoch_samples)
        except QuarantineError:
            if self.ranks.rank == 0:
                self._quarantine.write(step)
            raise

    def _next_part(self, step: int, batches: Iterator[BatchPart]) -> BatchPart:
        part = next(batches, None)
        if part is None:
            raise TrainingError(f"the data stream ended before step {step} of {self.num_steps}")
        if (part.step, part.rank) != (step, self.ranks.rank):
            # Ray Data deals rows out round-robin; training on another rank's share would silently change the batch.
            raise TrainingError(
                f"rank {self.ranks.rank} expected its share of step {step}, but got rank {part.rank}'s of step "
                f"{part.step}"
            )
        return part

    def _checkpoint(self, step: int) -> None:
        """Take the checkpoint of `step` and start its upload."""
        model_state = self._engine.model_state()  # every rank is in it
        snapshot = None
        if self.ranks.rank == 0:
            self._quarantine.write(step)
            snapshot = Snapshot(self._servable, on_the_host(model_state), tuple(self.history))
        self._writer.begin(step, self._engine.save, self._engine.state_bytes(), snapshot)

    def _manifest(self, step: int, files: tuple[Any, ...]) -> CheckpointManifest:
        return CheckpointManifest(
            step, self.ranks.world_size, self.resources.zero_stage, self.record["fingerprint"], files, self.record
        )
