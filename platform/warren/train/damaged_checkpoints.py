"""Damaged checkpoints: a run goes on from the newest one that is whole, and says which it left out.

The job looks before each start of the workers whether all files are there in their sizes. The workers, which read the
files, check every byte; if they find damage, they end, and the job starts them again from an older checkpoint. Only the
job decides, and it moves the damaged manifest away, so every process finds the same newest checkpoint.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

from warren.errors import CheckpointError, NotFoundError
from warren.storage import FileEntry, Location
from warren.train.checkpoint import CheckpointManifest
from warren.train.run import Run

_PARALLEL_LOOKS = 8


def newest_intact(run: Run, damage: str = "") -> CheckpointManifest | None:
    """Return the newest checkpoint that is whole, None if there is none at all; damaged newer ones are set aside.

    Args:
        damage: What workers found wrong with the newest, whatever it looks like from here.

    Raises:
        CheckpointError: There are checkpoints, and all of them are damaged.
    """
    damaged: dict[int, str] = {}
    for step in reversed(run.checkpoints.steps()):
        reason, manifest = _look(run, step)
        reason, damage = reason or damage, ""
        if manifest is not None and not reason:
            for bad, why in damaged.items():
                _set_aside(run, bad, why, step)
            return manifest
        damaged[step] = reason
    if damaged:
        found = "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
        raise CheckpointError(
            f"run {run.name!r} has no checkpoint that is whole ({found}): restore these files below "
            f"{run.checkpoints.folder}, or train anew under another name with --run"
        )
    return None


def _look(run: Run, step: int) -> tuple[str, CheckpointManifest | None]:
    """Return what is wrong with a checkpoint, as far as names and sizes tell, and its manifest."""
    try:
        manifest = run.checkpoints.read(step)
    except CheckpointError as error:
        return str(error), None
    folder = run.checkpoints.at(step)
    with ThreadPoolExecutor(_PARALLEL_LOOKS) as pool:
        found = pool.map(lambda entry: _wrong(folder, entry), manifest.files)
        return next(filter(None, found), ""), manifest


def _wrong(folder: Location, entry: FileEntry) -> str:
    target = folder / entry.path
    try:
        size = target.store.size(target.key)
    except NotFoundError:
        return f"{target} is missing"
    return "" if size == entry.bytes else f"{target} has {size} bytes, its manifest says {entry.bytes}"


def _set_aside(run: Run, step: int, reason: str, older: int) -> None:
    kept = run.checkpoints.set_aside(step)
    print(
        f"warning: run {run.name!r}: the checkpoint at step {step} is damaged ({reason}); going on from the one at "
        f"step {older}. If you can restore it, stop the run, restore it and rename {kept} to manifest.json",
        file=sys.stderr,
        flush=True,
    )
