"""The average of two runs' models, stored as a run of its own, so that it is evaluated and released like any other."""

import uuid

from warren.config import AverageConfig, Recipe, fingerprint
from warren.config.versions import git_revision
from warren.errors import CheckpointError
from warren.storage import Location
from warren.storage.scratch import scratch_folder
from warren.train.checkpoint import MODEL_FOLDER, CheckpointManifest
from warren.train.run import Run
from warren.train.run_record import RunRecord


def average_runs(recipe: Recipe, root: Location, target: str, first: str, second: str) -> Run:
    """Average the newest checkpoints of two runs, with the recipe's weights, into the run `target`.

    The result holds a model and no training state, so it cannot be resumed.

    Args:
        recipe: Has an `average`.
        root: Where runs live.
        target: Name of the new run; it must not exist.
        first: Name of the run whose weight is `average.first_weight`.
        second: Name of the run whose configuration is kept.

    Raises:
        WarrenError: A run has no complete checkpoint, or they are models of different shape.
    """
    from warren.models import average_models  # here, because it imports transformers

    config: AverageConfig = recipe.require("average")
    runs = [Run.of(root, name) for name in (first, second)]
    checkpoints = [run.newest_checkpoint() for run in runs]
    made = Run.of(root, target)
    if made.checkpoints.steps():
        raise CheckpointError(f"run {target!r} exists at {made.folder}: give the average another name with --run")
    record = _record(recipe, config, runs, checkpoints)
    one, two = (
        run.checkpoints.part(checkpoint, MODEL_FOLDER) for run, checkpoint in zip(runs, checkpoints, strict=True)
    )
    with scratch_folder("average") as scratch:
        result = scratch / "result"
        result.mkdir()
        models = one.fetch(scratch / "first"), two.fetch(scratch / "second")
        average_models(*models, config.first_weight, result / MODEL_FOLDER)
        made.write(record)
        step = checkpoints[1].step
        files = made.checkpoints.upload(step, uuid.uuid4().hex[:8], result)
        made.checkpoints.commit(CheckpointManifest(step, 1, 0, record["fingerprint"], tuple(files), record))
    return made


def _record(recipe: Recipe, config: AverageConfig, runs: list[Run], checkpoints: list[CheckpointManifest]) -> RunRecord:
    parents = [{"run": run.name, "step": c.step, **c.run} for run, c in zip(runs, checkpoints, strict=True)]
    return {
        "stage": "average",
        "recipe": {"name": recipe.name, "average": config.model_dump(mode="json")},
        "fingerprint": fingerprint(recipe),
        "datasets": checkpoints[1].run.get("datasets"),
        "parents": parents,
        "git_revision": git_revision(),
    }
