"""Checkpoints written while training goes on: a snapshot in the step, the upload in a thread, then the commit.

    idle ──begin──▶ uploading ──all ranks done──▶ committing (rank 0) ──done──▶ idle

No collective runs in the thread. Every step counts the busy ranks in its all-reduce. When there are none, all ranks
learn it at the same step, exchange their results, and enter the next state together. So an error of one rank's upload
is raised on all ranks at the same step.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from warren.errors import CheckpointError
from warren.storage import FileEntry
from warren.storage.scratch import scratch_folder
from warren.train.checkpoint import METRICS_FILE, RANKS_FOLDER, CheckpointManifest, Checkpoints
from warren.train.checkpoint_loader import random_state_file, write_random_state
from warren.train.ranks import Ranks
from warren.train.servable_model import Servable
from warren.train.step_metrics import StepMetrics, to_json_lines

_SPARE_FRACTION = 0.1  # of the snapshot, for file headers and small files


@dataclass(frozen=True)
class Snapshot:
    """Rank 0's additions to a checkpoint beside its share of the state; taken in the step, written in the thread.

    Attributes:
        model_state: A copy of the full weights on the host, so that training may change the model's own.
        history: The metrics of every step so far.
    """

    servable: Servable
    model_state: dict[str, torch.Tensor]
    history: Sequence[StepMetrics]

    def write(self, folder: Path) -> None:
        """Write the servable model and the metrics below `folder`."""
        self.servable.write(self.model_state, folder)
        (folder / RANKS_FOLDER / METRICS_FILE).write_text(to_json_lines(self.history))


class CheckpointWriter:
    """Writes one rank's share of the run's checkpoints, at most one at a time.

    Args:
        manifest: Makes the manifest of a step from all ranks' files.
        prune: Deletes the checkpoints that are not kept; called on rank 0 after every commit.
        on_outcome: Called with a step, and whether its checkpoint was committed: on rank 0 for one that was, on every
            rank that failed for one that was not. Must not block.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        ranks: Ranks,
        attempt: str,
        manifest: Callable[[int, tuple[FileEntry, ...]], CheckpointManifest],
        prune: Callable[[], None],
        on_outcome: Callable[[int, bool], None] = lambda _step, _is_committed: None,
    ) -> None:
        self._checkpoints, self._ranks, self._attempt = checkpoints, ranks, attempt
        self._manifest, self._prune, self._on_outcome = manifest, prune, on_outcome
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="warren-checkpoint")
        self._work: Future[Any] | None = None
        self._then: Callable[[list[Any]], None] = lambda _: None

    @property
    def busy(self) -> bool:
        """Whether this rank's upload or commit is still running."""
        return self._work is not None and not self._work.done()

    def begin(self, step: int, save_state: Callable[[Path], None], num_bytes: int, snapshot: Snapshot | None) -> None:
        """Take the checkpoint of `step`, and return once training may change the weights.

        Args:
            save_state: Writes this rank's share of the training state below a folder; every rank calls it at once.
            num_bytes: How much this rank will write to the local disk.
            snapshot: None on other ranks than 0.

        Raises:
            CheckpointError: The local disk of some node is too full.
        """
        self.finish()
        held = ExitStack()
        local = held.enter_context(scratch_folder("checkpoint"))
        try:
            self._ranks.together(lambda: _check_space(local, num_bytes))
            save_state(local)
            (local / RANKS_FOLDER).mkdir()
            write_random_state(local / RANKS_FOLDER / random_state_file(self._ranks.rank))
        except BaseException:
            held.close()
            self._on_outcome(step, False)
            raise
        self._work = self._thread.submit(self._upload, step, local, snapshot, held)
        self._then = lambda files: self._commit(step, [entry for entries in files for entry in entries])

    def advance(self, num_busy_ranks: int) -> None:
        """Go on to the next state if no rank is busy; every rank must call it with the same number.

        Raises:
            WarrenError: The error of some rank's thread, on every rank.
        """
        if self._work is None or num_busy_ranks:
            return
        work, then = self._work, self._then
        self._work, self._then = None, lambda _: None
        then(self._ranks.together(work.result))

    def finish(self) -> None:
        """Wait until the checkpoint that is being written is committed; every rank must call it."""
        while self._work is not None:
            self.advance(0)

    def _upload(self, step: int, local: Path, snapshot: Snapshot | None, held: ExitStack) -> list[FileEntry]:
        with self._failure_reported(step), held:
            try:
                if snapshot is not None:
                    snapshot.write(local)
                return self._checkpoints.upload(step, self._attempt, local)
            except OSError as error:
                raise CheckpointError(f"cannot write the checkpoint of step {step} to {local}: {error}") from None

    def _commit(self, step: int, files: list[FileEntry]) -> None:
        self._work = self._thread.submit(self._write_manifest, step, files)

    def _write_manifest(self, step: int, files: list[FileEntry]) -> None:
        # Every rank enters the state, so that all leave it at the same step; only rank 0 writes.
        if self._ranks.rank != 0:
            return
        with self._failure_reported(step):
            self._checkpoints.commit(self._manifest(step, tuple(files)))
        self._on_outcome(step, True)
        self._prune()

    @contextmanager
    def _failure_reported(self, step: int) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._on_outcome(step, False)
            raise


def on_the_host(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copy tensors to host memory; tensors that share memory share their copy too."""
    copies: dict[tuple[int, torch.Size], torch.Tensor] = {}
    on_host = {}
    for name, tensor in state.items():
        # Tied weights are one tensor under two names; two copies would be stored as two.
        key = (tensor.data_ptr(), tensor.shape)
        if key not in copies:
            copies[key] = tensor.detach().to("cpu", copy=True)
        on_host[name] = copies[key]
    return on_host


def _check_space(folder: Path, num_bytes: int) -> None:
    needed = int(num_bytes * (1 + _SPARE_FRACTION))
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"{folder.parent} has {free / 1e9:.1f} GB free, but a rank's share of a checkpoint takes "
            f"{needed / 1e9:.1f} GB there before it is uploaded: free some, or point TMPDIR at a larger disk"
        )
