"""The average of two runs' models, as a run of its own: evaluation and release take it like any other."""

import uuid
from pathlib import Path
from typing import Any

from warren.config import AverageConfig, Recipe, fingerprint
from warren.errors import CheckpointError, ConfigError
from warren.storage import Location, download_tree
from warren.storage.scratch import scratch_folder
from warren.train.checkpoint import MODEL_FOLDER, CheckpointManifest
from warren.train.run import Run, git_revision


def average_runs(recipe: Recipe, root: Location, target: str, first: str, second: str) -> Run:
    """Average the newest checkpoints of two runs, as the recipe weighs them, into the run `target`.

    The result holds a model and nothing to resume: it is not trained further under that name.

    Args:
        recipe: Has an `average`.
        root: Where runs live.
        target: Name of the run to make; what exists under it is kept, and is an error.
        first: Name of the run whose weight is `average.first_weight`.
        second: Name of the run whose configuration is kept.

    Raises:
        WarrenError: A run has no complete checkpoint, or they are models of different shape.
    """
    from warren.models import average_models  # here: who only asks whether a recipe trains needs no models

    config: AverageConfig = recipe.require("average")
    runs = [Run.of(root, name) for name in (first, second)]
    checkpoints = [_newest(run) for run in runs]
    made = Run.of(root, target)
    if made.checkpoints.steps():
        raise CheckpointError(f"run {target!r} exists at {made.folder}: give the average another name with --run")
    record = _record(recipe, config, runs, checkpoints)
    with scratch_folder("average") as scratch:
        models = [
            _fetch(run, found, scratch / str(n)) for n, (run, found) in enumerate(zip(runs, checkpoints, strict=True))
        ]
        result = scratch / "result"
        result.mkdir()
        average_models(models[0], models[1], config.first_weight, result / MODEL_FOLDER)
        made.write(record)
        step = checkpoints[1].step
        files = made.checkpoints.upload(step, uuid.uuid4().hex[:8], result)
        made.checkpoints.commit(CheckpointManifest(step, 1, 0, record["fingerprint"], tuple(files), record))
    return made


def _newest(run: Run) -> CheckpointManifest:
    found = run.checkpoints.latest()
    if found is None:
        raise CheckpointError(f"run {run.name!r} at {run.folder} has no complete checkpoint: train it first")
    return found


def _fetch(run: Run, checkpoint: CheckpointManifest, folder: Path) -> Path:
    entries = checkpoint.below(MODEL_FOLDER)
    download_tree(run.checkpoints.at(checkpoint.step), entries, folder)
    return folder / entries[0].path.split("/")[0] / MODEL_FOLDER


def _record(
    recipe: Recipe, config: AverageConfig, runs: list[Run], checkpoints: list[CheckpointManifest]
) -> dict[str, Any]:
    parents = [{"run": run.name, "step": c.step, **c.run} for run, c in zip(runs, checkpoints, strict=True)]
    return {
        "stage": "average",
        "recipe": {"name": recipe.name, "average": config.model_dump(mode="json")},
        "fingerprint": fingerprint(recipe),
        "datasets": parents[1].get("datasets"),
        "parents": parents,
        "git_revision": git_revision(),
    }


def refuse_to_train(recipe: Recipe) -> None:
    """Refuse a recipe that is made of others'.

    Raises:
        ConfigError: It has an `average`.
    """
    if recipe.average is not None:
        raise ConfigError(
            f"recipe {recipe.name!r} is the average of {recipe.average.first!r} and {recipe.average.second!r}: "
            f"train these two, then run jobs/average.py --recipe {recipe.name}"
        )
