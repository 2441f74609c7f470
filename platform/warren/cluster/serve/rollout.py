"""From a measured checkpoint to a serving release: gate, publish, move `candidate`, deploy, move `stable`."""

from dataclasses import asdict, dataclass

from warren.cluster.batch.evaluation import evaluations_of, identify
from warren.cluster.serve.endpoint import roll_in
from warren.config import EvaluateConfig, Recipe, ReleaseConfig, Resources
from warren.data.manifest import read_manifest
from warren.errors import ConflictError, ReleaseError
from warren.evaluate.report import Evaluation
from warren.release import GoldenWriter, check_gate, move_alias, publish, read_alias, read_release, release_folder
from warren.storage import Location
from warren.train.checkpoint import MODEL_FOLDER, CheckpointManifest
from warren.train.run import Run


@dataclass(frozen=True)
class Released:
    """A release that a job has published."""

    uri: str
    name: str
    version: str
    evaluation: Evaluation

    @property
    def score(self) -> float:
        """The score that passed the gate."""
        return self.evaluation.value


def make_release(
    recipe: Recipe,
    root: Location,
    run: Run,
    measure: str = "jobs/evaluate.py",
    golden: GoldenWriter | None = None,
) -> Released:
    """Publish the run's newest checkpoint if it passes the recipe's gate, and call it `candidate`.

    Args:
        recipe: Its `evaluate` says which measurement the gate asks for.
        root: Where datasets and releases live.
        run: Whose newest checkpoint it is.
        measure: The command that makes that measurement, for the error if it is missing.
        golden: See `publish`.

    Raises:
        CheckpointError: The run has no complete checkpoint.
        ReleaseError: The checkpoint was not measured as the gate asks.
        QuarantineError: The measurement leaves out more samples than the recipe allows.
        GateError: It does not reach the gate.
    """
    checkpoint = run.newest_checkpoint()
    wanted: ReleaseConfig = recipe.require("release")
    evaluation = measured_as_asked(recipe.require("evaluate"), root, run, checkpoint, measure)
    check_gate(wanted.gate, evaluation.metric, evaluation.value, evaluation.score["num_samples"])
    name, version = wanted.name, _version(root, wanted.name, run, checkpoint, evaluation)
    folder = publish(
        root,
        name,
        version,
        model=run.checkpoints.part(checkpoint, MODEL_FOLDER),
        lineage={
            **checkpoint.run,
            "run": run.name,
            "step": checkpoint.step,
            "evaluation": asdict(evaluation.identity),
        },
        scores={f"{evaluation.dataset}/{evaluation.metric}": evaluation.value},
        golden=golden,
    )
    move_alias(root, name, "candidate", version, expected=read_alias(root, name, "candidate"))
    return Released(folder.uri, name, version, evaluation)


def measured_as_asked(
    config: EvaluateConfig, root: Location, run: Run, checkpoint: CheckpointManifest, measure: str
) -> Evaluation:
    """Return the evaluation of a checkpoint that a configuration describes.

    Raises:
        ReleaseError: There is none; the message lists those there are, and how to make this one.
        QuarantineError: It leaves out more samples than the configuration allows.
    """
    if config.shuffled_images:
        raise ReleaseError("evaluate.shuffled_images is a control, not a score: a release needs the evaluation without")
    wanted = identify(config, checkpoint, read_manifest(root, config.dataset))
    stored = evaluations_of(run)
    evaluation = stored.find(checkpoint.step, wanted)
    if evaluation is not None:
        evaluation.check_quarantined(config.max_quarantined_fraction, stored.at(checkpoint.step, wanted))
        return evaluation
    others = [
        f"{each.identity.description}: {each.value:.2%} (differs: {', '.join(wanted.differences(each.identity))})"
        for each in stored.of_step(checkpoint.step)
    ]
    raise ReleaseError(
        f"step {checkpoint.step} of run {run.name!r} was not measured as the gate asks, by {wanted.description}; "
        f"measured so far: {'; '.join(others) or 'nothing'}. Measure it first: {measure}"
    )


def _version(root: Location, name: str, run: Run, checkpoint: CheckpointManifest, evaluation: Evaluation) -> str:
    """Name the version after run and step, and after the evaluation too if these weights have another version.

    A release holds its scores and never changes, so the same weights with another evaluation are another version.
    """
    version = f"{run.name}-{checkpoint.step:08d}"
    try:
        present = read_release(release_folder(root, name, version))
    except ReleaseError:
        return version
    if present.lineage.get("evaluation") == asdict(evaluation.identity):
        return version
    return f"{version}-{evaluation.identity.name}"


def roll_out(resources: Resources, root: Location, released: Released, timeout_s: float) -> None:
    """Serve a release, and call it `stable` once it serves.

    Raises:
        ServiceError: It does not come up, or what runs cannot be kept; the alias stays where it is.
        ConflictError: It serves, but another job has moved the alias since.
    """
    name = released.name
    expected = read_alias(root, name, "stable")
    roll_in(released.uri, name, resources, timeout_s)
    try:
        move_alias(root, name, "stable", released.version, expected)
    except ConflictError as error:
        raise ConflictError(
            f"{released.version} serves, but another job moved the alias 'stable' meanwhile ({error}): "
            "release the version again that is to serve"
        ) from None
