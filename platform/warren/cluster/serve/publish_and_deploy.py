"""From a measured checkpoint to a serving release: gate, publish, move `candidate`, wait until it serves."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from warren.cluster.batch.evaluation import evaluations_of, identify
from warren.cluster.serve.endpoint import ensure_endpoint
from warren.cluster.serve.endpoint_config import EndpointSpec
from warren.cluster.serve.gate_facts import facts_of
from warren.cluster.serve.lineage import lineage_of
from warren.cluster.serve.sanity_questions import write_questions
from warren.config import EvaluateConfig, GateConfig, Recipe, Resources, RolloutPolicy
from warren.data.manifest import read_manifest
from warren.errors import ReleaseError
from warren.evaluate.evaluation_report import Evaluation
from warren.release import (
    EngineProbe,
    EvaluationReference,
    GateOverride,
    GateVerdict,
    GoldenWriter,
    Registry,
    check_gate,
    judge,
    publish,
    read_alias,
    read_release,
    release_folder,
    write_accepted,
    write_refused,
)
from warren.rollout.state_store import RolloutFiles
from warren.rollout.waiting import wait_until_serving
from warren.storage import FileEntry, Location, StoredFiles
from warren.train.checkpoint import MODEL_FOLDER, CheckpointManifest
from warren.train.run import Run

EngineProber = Callable[[GateConfig, StoredFiles], EngineProbe]
"""Starts an engine of a model and measures what the gate asks of it, as `probe_engine` does."""
_START_S = 900.0  # for the endpoint's own replicas


@dataclass(frozen=True)
class Released:
    """A release that a job has published."""

    uri: str
    name: str
    version: str
    evaluation: Evaluation
    verdict: GateVerdict

    @property
    def score(self) -> float:
        """The score that passed the gate."""
        return self.evaluation.value


def make_release(
    recipe: Recipe,
    root: Location,
    run: Run,
    measure: str = "jobs/evaluate.py",
    override: GateOverride | None = None,
    who: str | None = None,
    golden: GoldenWriter | None = None,
    probe: EngineProber | None = None,
    checkpoint: CheckpointManifest | None = None,
    once: bool = False,
) -> Released:
    """Publish a checkpoint of a run if it passes the recipe's gate, and call it `candidate`.

    Args:
        recipe: Its `evaluate` says which measurement the gate asks for.
        root: Where datasets and releases live.
        run: Whose checkpoint it is.
        measure: The command that makes that measurement, for the error if it is missing.
        override: Publish it although it does not pass, and record that.
        who: Who releases; None takes the name of this process's user.
        golden: See `publish`.
        probe: Asks an engine of the model, where the gate has conditions on it.
        checkpoint: None for the run's newest.
        once: Leave the alias alone if it has named this release before; for a job that may have been interrupted.

    Raises:
        CheckpointError: The run has no complete checkpoint.
        ReleaseError: The checkpoint was not measured as the gate asks.
        QuarantineError: The measurement leaves out more samples than the recipe allows.
        GateError: It does not pass the gate.
    """
    checkpoint = checkpoint or run.newest_checkpoint()
    name, gate = (release_config := recipe.require("release")).name, release_config.gate
    evaluation = measured_as_asked(recipe.require("evaluate"), root, run, checkpoint, measure)
    model = run.checkpoints.part(checkpoint, MODEL_FOLDER)
    lineage = lineage_of(root, run, checkpoint, evaluation.identity)
    registry = Registry(root, name)
    facts = facts_of(gate, registry, lineage, model, run, evaluation)
    if gate.asks_engine and probe is not None:
        facts = replace(facts, engine=probe(gate, model))
    verdict = judge(gate, facts, override)
    if not verdict.accepted:
        # Stored before the error, so that people can read the verdict without running the job again.
        write_refused(evaluations_of(run).at(evaluation.step, evaluation.identity), verdict)
    check_gate(verdict)
    version = _version(root, name, run, checkpoint, evaluation)
    # Before the files: a release that can be read always has its verdict.
    write_accepted(release_folder(root, name, version), verdict, complete=version in registry.versions())
    scores = {f"{evaluation.dataset}/{evaluation.metric}": evaluation.value}
    folder = publish(root, name, version, model, lineage, scores, _with_questions(golden, recipe, root))
    if not (once and any(move.after == version for move in registry.history("candidate"))):
        registry.move("candidate", version, registry.alias("candidate"), who, _why(run, checkpoint, verdict))
    return Released(folder.uri, name, version, evaluation, verdict)


def _with_questions(golden: GoldenWriter | None, recipe: Recipe, root: Location) -> GoldenWriter:
    """Return what writes a release's golden cases, and its sanity questions too."""

    def write(model: StoredFiles, folder: Location) -> tuple[FileEntry, ...]:
        cases = golden(model, folder) if golden else ()
        return cases + write_questions(recipe.require("evaluate"), root, folder)

    return write


def _why(run: Run, checkpoint: CheckpointManifest, verdict: GateVerdict) -> str:
    """Return the reason that the alias' history gives."""
    why = f"released from run {run.name} at step {checkpoint.step}"
    if verdict.override is None:
        return why
    return f"{why}; the gate refused it, {verdict.override.who} overrode that: {verdict.override.why}"


def measured_as_asked(
    config: EvaluateConfig, root: Location, run: Run, checkpoint: CheckpointManifest, measure: str
) -> Evaluation:
    """Return the evaluation of a checkpoint that a configuration describes.

    Raises:
        ReleaseError: There is none; the message lists those there are, and how to make this one.
        QuarantineError: It leaves out more samples than the configuration allows.
    """
    if config.shuffled_images:
        raise ReleaseError(
            "evaluate.shuffled_images is true, which measures a control and not the model: a release needs an "
            "evaluation with shuffled_images: false"
        )
    identity = identify(config, checkpoint, read_manifest(root, config.dataset))
    stored = evaluations_of(run)
    evaluation = stored.find(checkpoint.step, identity)
    if evaluation is not None:
        evaluation.check_quarantined(config.max_quarantined_fraction, stored.at(checkpoint.step, identity))
        return evaluation
    others = [
        f"{each.identity.description}: {each.value:.2%} (differs: {', '.join(identity.differences(each.identity))})"
        for each in stored.of_step(checkpoint.step)
    ]
    step = f" --step {checkpoint.step}" if checkpoint.step != run.newest_checkpoint().step else ""
    raise ReleaseError(
        f"step {checkpoint.step} of run {run.name!r} was not measured as the gate asks, by {identity.description}; "
        f"measured so far: {'; '.join(others) or 'nothing'}. Measure it first: {measure}{step}"
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
    if EvaluationReference(**asdict(evaluation.identity)) in present.lineage.evaluations:
        return version
    return f"{version}-{evaluation.identity.name}"


def roll_out(
    resources: Resources,
    root: Location,
    released: Released,
    spec: EndpointSpec,
    keeps_settings: bool = False,
    timeout_s: float | None = None,
) -> None:
    """Have an endpoint roll a release in, and wait until it serves.

    The release is `candidate` already; the endpoint's controller does the rest, also if this process ends.

    Args:
        spec: What an endpoint file says.
        keeps_settings: Whether an endpoint of this release that runs is taken as it is, whatever `spec` says.
        timeout_s: How long to wait; None is as long as the endpoint's policy allows, and some time for its start.

    Raises:
        ServiceError: The endpoint cannot be deployed, or does not come up.
        ReleaseError: The release was undone, or does not serve in time; what served before keeps serving.
    """
    folder = f"{root}/releases/{released.name}"
    deployed = ensure_endpoint(folder, released.name, resources, spec, keeps_settings)

    def serves() -> bool:
        # Another job may have moved the alias; then this release never becomes the one that serves.
        candidate = read_alias(root, released.name, "candidate")
        if candidate not in (None, released.version):
            raise ReleaseError(f"{released.version} will not serve: another job made {candidate} the candidate")
        if (room := deployed.waits_for_room(released.version)) and room not in said:
            said.append(room)
            print(f"rollout: {released.version} is {room}", file=sys.stderr, flush=True)
        return deployed.is_running()

    said: list[str] = []
    files = RolloutFiles(root, released.name, deployed.application)
    wait_until_serving(files, released.version, timeout_s or _patience_s(deployed.args), serves)


def _patience_s(args: Mapping[str, Any]) -> float:
    """Return how long a rollout may take by an application's args; pauses are not known."""
    try:
        policy = RolloutPolicy.model_validate(dict(args.get("rollout") or {}))
    except ValueError:  # of another version of Warren
        policy = RolloutPolicy()
    return policy.total_timeout_s + _START_S
