"""From a measured checkpoint to a serving release: gate, publish, move `candidate`, deploy, move `stable`."""

from dataclasses import dataclass

from warren.cluster.evaluation import REPORT, evaluation_folder
from warren.cluster.serving import application_config, deploy
from warren.config import Recipe, ReleaseConfig, Resources
from warren.errors import NotFoundError, ReleaseError
from warren.evaluate.report import Evaluation
from warren.release import check_gate, move_alias, publish, read_alias
from warren.storage import Location
from warren.train.checkpoint import MODEL_FOLDER
from warren.train.record import Run


@dataclass(frozen=True)
class Released:
    """What a release job made."""

    uri: str
    name: str
    version: str
    score: float


def make_release(recipe: Recipe, root: Location, run: Run) -> Released:
    """Publish the run's newest checkpoint if it passes the recipe's gate, and call it `candidate`.

    Raises:
        ReleaseError: There is no complete checkpoint, or it was not measured.
        GateError: It does not reach the gate.
    """
    checkpoint = run.checkpoints.latest()
    if checkpoint is None:
        raise ReleaseError(f"run {run.name!r} at {run.folder} has no complete checkpoint to release")
    wanted: ReleaseConfig = recipe.require("release")
    report = evaluation_folder(run, checkpoint.step, recipe.require("evaluate")) / REPORT
    try:
        evaluation = Evaluation(**report.read_json())
    except NotFoundError:
        raise ReleaseError(
            f"step {checkpoint.step} of {run.name!r} was not measured: run jobs/evaluate.py first"
        ) from None
    check_gate(wanted.gate, evaluation.metric, evaluation.value, evaluation.score["num_samples"])
    name, version = wanted.name, f"{run.name}-{checkpoint.step:08d}"
    folder = publish(
        root,
        name,
        version,
        source=run.checkpoints.at(checkpoint.step),
        files=checkpoint.below(MODEL_FOLDER),
        lineage={**checkpoint.run, "run": run.name, "step": checkpoint.step},
        scores={f"{evaluation.dataset}/{evaluation.metric}": evaluation.value},
    )
    move_alias(root, name, "candidate", version, expected=read_alias(root, name, "candidate"))
    return Released(folder.uri, name, version, evaluation.value)


def roll_out(recipe: Recipe, resources: Resources, root: Location, released: Released) -> None:
    """Serve a release, and call it `stable` once it serves."""
    name = released.name
    expected = read_alias(root, name, "stable")
    deploy(application_config(released.uri, name, resources))
    move_alias(root, name, "stable", released.version, expected)
