"""Loading a checkpoint: its state on the local disk, converted to this number of ranks, and random-number states."""

import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from warren.errors import CorruptDataError, DamagedCheckpointError, NotFoundError
from warren.train.checkpoint import METRICS_FILE, RANKS_FOLDER, STATE_FOLDER, CheckpointManifest, Checkpoints
from warren.train.engine import refused_as_checkpoint, to_universal
from warren.train.ranks import Ranks
from warren.train.step_metrics import StepMetrics, from_json_lines

# Earlier versions wrote NumPy's state as an array.
_NUMPY_TYPES: list[Any] = [np.zeros(1).__reduce__()[0], np.ndarray, np.dtype, np.dtypes.UInt32DType]


def resizes(checkpoint: CheckpointManifest | None, world_size: int, zero_stage: int) -> bool:
    """Return whether the optimizer state must be repartitioned; without ZeRO every rank has all of it."""
    return checkpoint is not None and zero_stage > 0 and checkpoint.world_size != world_size


def fetch(checkpoints: Checkpoints, start: CheckpointManifest, ranks: Ranks, zero_stage: int, attempt: str) -> Path:
    """Download a checkpoint's state once on each node, and convert it to the number of ranks.

    Returns:
        The folder, the same for all ranks of a node.

    Raises:
        DamagedCheckpointError: A file is missing or damaged; on every rank.
    """
    folder = Path(tempfile.gettempdir()) / f"warren-resume-{attempt}"

    def once_a_node() -> None:
        if ranks.local_rank == 0:
            try:
                for part in (STATE_FOLDER, RANKS_FOLDER):
                    checkpoints.part(start, part).fetch(folder / part)
            except (CorruptDataError, NotFoundError) as error:
                raise DamagedCheckpointError(str(error)) from None
            if resizes(start, ranks.world_size, zero_stage):
                to_universal(folder)

    # Together, so that an error of one node is raised on all ranks and no rank waits for it.
    ranks.together(once_a_node)
    return folder


def read_history(folder: Path) -> list[StepMetrics]:
    """Return the metrics of every step up to the checkpoint."""
    return from_json_lines((folder / RANKS_FOLDER / METRICS_FILE).read_text())


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    random.seed(seed)
    # NumPy takes 32 bits; torch and Python take more.
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state_file(rank: int) -> str:
    """Name the file of a rank's random-number state."""
    return f"random-{rank:05d}.pt"


def write_random_state(path: Path) -> None:
    """Write the random-number state of this process, as tensors and plain values."""
    drawn: Any = np.random.get_state()
    name, keys, *rest = drawn
    numpy_state = (name, torch.from_numpy(keys.astype(np.int64)), *rest)
    state = {"python": random.getstate(), "numpy": numpy_state, "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    torch.save(state, path)


def read_random_state(path: Path) -> None:
    """Restore the random-number state from `path`; a rank that did not exist then keeps its own.

    Raises:
        CheckpointError: The file holds something else than tensors and plain values.
    """
    if not path.is_file():
        return
    with refused_as_checkpoint(path.name), torch.serialization.safe_globals(_NUMPY_TYPES):
        state = torch.load(path, weights_only=True)
    name, keys, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((name, np.asarray(keys).astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])
