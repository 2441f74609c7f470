"""The training loop of one rank: batch parts in, steps, metrics and checkpoints out. It knows nothing of Ray."""

import json
import random
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from warren.config import Resources, StageConfig
from warren.data.batch import BatchPart, Cut
from warren.data.inputs import Inputs
from warren.data.quarantine import Quarantine
from warren.errors import QuarantineError, TrainingError, WarrenError
from warren.storage import FileEntry, Location, download_tree
from warren.train.checkpoint import (
    METRICS_FILE,
    RANKS_FOLDER,
    STATE_FOLDER,
    CheckpointManifest,
    relative_to_attempt,
)
from warren.train.engine import Engine, to_universal
from warren.train.objective import Objective, to_tensors
from warren.train.record import Run
from warren.train.servable import Servable

Row = dict[str, Any]


@dataclass
class TrainingLoop:
    """Trains one stage on one rank.

    Attributes:
        record: What the run was; goes into every checkpoint.
        on_step: Called on rank 0 with each step's metrics; must not block.
    """

    run: Run
    stage: StageConfig
    resources: Resources
    cut: Cut
    num_steps: int
    num_epoch_samples: int
    rank: int
    local_rank: int
    inputs: Inputs
    tokenizer_json: str
    record: Row
    on_step: Callable[[Row], None]
    history: list[Row] = field(default_factory=list)

    def train(self, model: torch.nn.Module, batches: Iterator[BatchPart], start: CheckpointManifest | None) -> None:
        """Train from `start` (None: from the beginning) to the last step, and commit the final checkpoint."""
        self._servable = Servable(model, self.stage, self.inputs, self.tokenizer_json)
        self._attempt = self._same_everywhere(uuid.uuid4().hex[:8])
        self._quarantine = Quarantine(self.run.folder / "quarantine", self.stage.max_quarantined_fraction)
        if self.resources.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
        seed_everything(self.stage.seed + self.rank)
        folder = self._fetch(start) if start else None
        objective = Objective(model, self.inputs)
        universal = self._resizes(start)
        self._engine = Engine(objective, self.stage, self.resources, self.cut, self.num_steps, universal)
        step = 0
        if start is not None and folder is not None:
            self._restore(start, folder)
            self._together(lambda: [])  # all ranks of the node have read it
            shutil.rmtree(folder, ignore_errors=True)
            step = start.step
        model.train()
        while step < self.num_steps:
            self._step(step, batches)
            step += 1
            if step % self.stage.checkpoint_every_steps == 0 or step == self.num_steps:
                self._checkpoint(step)

    def _step(self, step: int, batches: Iterator[BatchPart]) -> None:
        asked = time.perf_counter()
        part = self._next_part(step, batches)
        began = time.perf_counter()
        share = torch.zeros((), device=self._engine.device)
        for micro_batch in part.micro_batches:
            tensors = to_tensors(micro_batch, self._engine.device)
            share += self._engine.forward_backward(tensors, part.num_supervised_tokens)
        grad_norm, learning_rate = self._engine.step()
        dist.all_reduce(share)
        row = {
            "step": step,
            "epoch": part.epoch,
            "loss": float(share),
            "grad_norm": grad_norm,
            "learning_rate": learning_rate,
            "samples": part.num_samples,
            "supervised_tokens": part.num_supervised_tokens,
            "data_wait_s": began - asked,
            "step_s": time.perf_counter() - began,
        }
        self._guard(step, row, part)
        if self.rank == 0:
            self.history.append(row)
            self.on_step(row)

    def _guard(self, step: int, row: Row, part: BatchPart) -> None:
        """Stop a run that cannot go well. Every rank sees the same figures, so all stop at the same step."""
        if not np.isfinite(row["loss"]):
            raise TrainingError(
                f"the loss is {row['loss']} at step {step}: lower the learning rate, or look at these samples: "
                f"{', '.join(part.keys[:8])}"
            )
        try:
            self._quarantine.add(step, part.quarantined, self.num_epoch_samples)
        except QuarantineError:
            if self.rank == 0:
                self._quarantine.write(step)
            raise

    def _next_part(self, step: int, batches: Iterator[BatchPart]) -> BatchPart:
        part = next(batches, None)
        if part is None:
            raise TrainingError(f"the data stream ended before step {step} of {self.num_steps}")
        if (part.step, part.rank) != (step, self.rank):
            # Ray Data deals rows out round-robin; training on another rank's share would silently change the batch.
            raise TrainingError(
                f"rank {self.rank} expected its share of step {step}, but got rank {part.rank}'s of step {part.step}"
            )
        return part

    def _checkpoint(self, step: int) -> None:
        """Write, upload and verify every rank's files, then commit the manifest on rank 0."""
        model_state = self._engine.model_state()
        with tempfile.TemporaryDirectory(prefix="warren-checkpoint-") as folder:
            local = Path(folder)
            self._engine.save(local)
            (local / RANKS_FOLDER).mkdir()
            torch.save(_random_state(), local / RANKS_FOLDER / f"random-{self.rank:05d}.pt")
            if self.rank == 0:
                self._servable.write(model_state, local)
                lines = "".join(json.dumps(row) + "\n" for row in self.history)
                (local / RANKS_FOLDER / METRICS_FILE).write_text(lines)
            files = self._together(lambda: self.run.checkpoints.upload(step, self._attempt, local))
        self._together(lambda: self._commit(step, files) if self.rank == 0 else [])

    def _commit(self, step: int, files: list[FileEntry]) -> list[FileEntry]:
        self._quarantine.write(step)
        self.run.checkpoints.commit(
            CheckpointManifest(
                step,
                self.cut.world_size,
                self.resources.zero_stage,
                self.record["fingerprint"],
                tuple(files),
                self.record,
            )
        )
        self.run.checkpoints.prune(self.stage.keep_checkpoints)
        return files

    def _together(self, action: Callable[[], list[FileEntry]]) -> list[FileEntry]:
        """Run `action` on every rank and gather the results; an error on one rank is raised on all of them."""
        mine: list[FileEntry] | WarrenError
        try:
            mine = action()
        except WarrenError as error:
            mine = error
        everyone: list[Any] = [None] * self.cut.world_size
        dist.all_gather_object(everyone, mine)
        for result in everyone:
            if isinstance(result, WarrenError):
                raise result
        return [entry for entries in everyone for entry in entries]

    def _restore(self, checkpoint: CheckpointManifest, folder: Path) -> None:
        """Load weights, optimizer, schedule, random state and metrics."""
        self._engine.load(folder)
        mine = folder / RANKS_FOLDER / f"random-{self.rank:05d}.pt"
        if mine.is_file() and checkpoint.world_size == self.cut.world_size:
            _set_random_state(torch.load(mine, weights_only=False))
        lines = (folder / RANKS_FOLDER / METRICS_FILE).read_text().splitlines()
        self.history[:] = [json.loads(line) for line in lines]

    def _fetch(self, checkpoint: CheckpointManifest) -> Path:
        """Download a checkpoint's state once a node, for all of its ranks, and fit it to their number."""
        folder = Path(tempfile.gettempdir()) / f"warren-resume-{self._attempt}"

        def fetch() -> list[FileEntry]:
            if self.local_rank == 0:
                _fetch_state(self.run.checkpoints.at(checkpoint.step), checkpoint, folder)
                if self._resizes(checkpoint):
                    to_universal(folder)
            return []

        self._together(fetch)
        return folder

    def _resizes(self, checkpoint: CheckpointManifest | None) -> bool:
        """Whether the optimizer state must be partitioned anew; without ZeRO every rank has all of it."""
        if checkpoint is None or self.resources.zero_stage == 0:
            return False
        return checkpoint.world_size != self.cut.world_size

    def _same_everywhere(self, value: str) -> str:
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _fetch_state(source: Location, checkpoint: CheckpointManifest, target: Path) -> None:
    """Download what resuming needs, with the attempt's name taken out of the paths."""
    entries = (*checkpoint.below(STATE_FOLDER), *checkpoint.below(RANKS_FOLDER))
    download_tree(source, entries, target)
    for entry, inside in relative_to_attempt(entries):
        (target / inside).parent.mkdir(parents=True, exist_ok=True)
        (target / entry.path).rename(target / inside)


def _random_state() -> dict[str, Any]:
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
