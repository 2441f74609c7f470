"""Going on from a checkpoint: its state on the local disk, fitted to this number of ranks, and random states."""

import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from warren.errors import CorruptDataError, DamagedCheckpointError, NotFoundError
from warren.storage import Location, download_tree
from warren.train.checkpoint import METRICS_FILE, RANKS_FOLDER, STATE_FOLDER, CheckpointManifest, relative_to_attempt
from warren.train.engine import to_universal
from warren.train.ranks import Ranks

StepMetrics = dict[str, Any]


def resizes(checkpoint: CheckpointManifest | None, world_size: int, zero_stage: int) -> bool:
    """Whether the optimizer state must be partitioned anew; without ZeRO every rank has all of it."""
    return checkpoint is not None and zero_stage > 0 and checkpoint.world_size != world_size


def fetch(source: Location, checkpoint: CheckpointManifest, ranks: Ranks, zero_stage: int, attempt: str) -> Path:
    """Download a checkpoint's state once a node, for all of its ranks, and fit it to their number.

    Returns:
        The folder, the same for all ranks of a node.

    Raises:
        DamagedCheckpointError: A file is missing or damaged; on every rank.
    """
    folder = Path(tempfile.gettempdir()) / f"warren-resume-{attempt}"

    def once_a_node() -> None:
        if ranks.local_rank == 0:
            entries = (*checkpoint.below(STATE_FOLDER), *checkpoint.below(RANKS_FOLDER))
            try:
                _download(source, entries, folder)
            except (CorruptDataError, NotFoundError) as error:
                raise DamagedCheckpointError(str(error)) from None
            if resizes(checkpoint, ranks.world_size, zero_stage):
                to_universal(folder)

    ranks.together(once_a_node)
    return folder


def read_history(folder: Path) -> list[StepMetrics]:
    """Return the metrics of every step up to the checkpoint."""
    lines = (folder / RANKS_FOLDER / METRICS_FILE).read_text().splitlines()
    return [json.loads(line) for line in lines]


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state_file(rank: int) -> str:
    """Name the file of a rank's random-number state."""
    return f"random-{rank:05d}.pt"


def write_random_state(path: Path) -> None:
    """Write the random-number state of this process."""
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    torch.save(state, path)


def read_random_state(path: Path) -> None:
    """Go on with the random numbers of `path`; a rank that did not exist then keeps its own."""
    if not path.is_file():
        return
    state = torch.load(path, weights_only=False)
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


def _download(source: Location, entries: Sequence[Any], target: Path) -> None:
    """Download what resuming needs, with the attempt's name taken out of the paths."""
    download_tree(source, entries, target)
    for entry, inside in relative_to_attempt(entries):
        (target / inside).parent.mkdir(parents=True, exist_ok=True)
        (target / entry.path).rename(target / inside)
