"""Damaged checkpoints: a run goes on from its newest intact checkpoint, and warns about each one that it leaves out.

Before each start of the workers, the driver checks that all files exist with the right sizes. The workers, which read
the files, check every byte. If they find damage they end, and the driver starts them again from an older checkpoint.
Only the driver decides, and it renames the damaged manifest, so every process finds the same newest checkpoint.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

from warren.errors import CheckpointError, NotFoundError
from warren.storage import FileEntry, Location
from warren.train.checkpoint import CheckpointManifest
from warren.train.run import Run

_PARALLEL_CHECKS = 8


def newest_intact(run: Run, damage: str = "") -> CheckpointManifest | None:
    """Return the newest intact checkpoint, or None if there is none at all; damaged newer ones are set aside.

    Args:
        damage: The damage that workers reported for the newest checkpoint; empty if they reported none.

    Raises:
        CheckpointError: There are checkpoints, and all of them are damaged.
    """
    damaged: dict[int, str] = {}
    for step in reversed(run.checkpoints.steps()):
        reason, manifest = _check(run, step)
        reason, damage = reason or damage, ""
        if manifest is not None and not reason:
            for bad, why in damaged.items():
                _set_aside(run, bad, why, step)
            return manifest
        damaged[step] = reason
    if damaged:
        listed = "; ".join(f"step {step}: {reason}" for step, reason in damaged.items())
        raise CheckpointError(
            f"run {run.name!r} has no checkpoint that is whole ({listed}): restore these files below "
            f"{run.checkpoints.folder}, or train anew under another name with --run"
        )
    return None


def _check(run: Run, step: int) -> tuple[str, CheckpointManifest | None]:
    """Return a checkpoint's damage, as far as names and sizes show it, and its manifest."""
    try:
        manifest = run.checkpoints.read(step)
    except CheckpointError as error:
        return str(error), None
    folder = run.checkpoints.at(step)
    with ThreadPoolExecutor(_PARALLEL_CHECKS) as pool:
        damage = pool.map(lambda entry: _damage(folder, entry), manifest.files)
        return next(filter(None, damage), ""), manifest


def _damage(folder: Location, entry: FileEntry) -> str:
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
