"""From a measured checkpoint to a serving release: gate, publish, move `candidate`, deploy, move `stable`."""

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from warren.cluster.batch.evaluation import evaluations_of, identify
from warren.cluster.serve.endpoint import roll_in, rolling_endpoint
from warren.cluster.serve.endpoint_config import DEFAULT_SPEC, EndpointSpec
from warren.cluster.serve.gate_facts import facts_of
from warren.cluster.serve.lineage import lineage_of
from warren.config import EvaluateConfig, GateConfig, Recipe, Resources
from warren.data.manifest import read_manifest
from warren.errors import ConflictError, ReleaseError
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
    move_alias,
    publish,
    read_alias,
    read_deployment,
    read_release,
    release_folder,
    write_accepted,
    write_deployment,
    write_refused,
)
from warren.rollout.records import RolloutFiles
from warren.rollout.waiting import wait_until_serving
from warren.storage import Location, StoredFiles
from warren.train.checkpoint import MODEL_FOLDER, CheckpointManifest
from warren.train.run import Run

EngineProber = Callable[[GateConfig, StoredFiles], EngineProbe]
"""Starts an engine of a model and measures what the gate asks of it, as `probe_engine` does."""


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
        write_refused(evaluations_of(run).at(evaluation.step, evaluation.identity), verdict)
    check_gate(verdict)
    version = _version(root, name, run, checkpoint, evaluation)
    write_accepted(release_folder(root, name, version), verdict, complete=version in registry.versions())
    scores = {f"{evaluation.dataset}/{evaluation.metric}": evaluation.value}
    folder = publish(root, name, version, model, lineage, scores, golden)
    if not (once and any(move.after == version for move in registry.history("candidate"))):
        registry.move("candidate", version, registry.alias("candidate"), who, _why(run, checkpoint, verdict))
    return Released(folder.uri, name, version, evaluation, verdict)


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
        raise ReleaseError("evaluate.shuffled_images is a control, not a score: a release needs the evaluation without")
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
    timeout_s: float,
    who: str | None = None,
    spec: EndpointSpec | None = None,
) -> None:
    """Serve a release, and call it `stable` once it serves.

    Args:
        timeout_s: How long it may take to come up before it is undone.
        who: Who moves the alias; None takes the name of this process's user.
        spec: What an endpoint file says; None keeps the settings of an endpoint that runs.

    Raises:
        ServiceError: It does not come up, or what runs cannot be kept; the alias stays where it is.
        ReleaseError: An endpoint that rolls releases in by itself has undone it, or does not serve it in time.
        ConflictError: It serves, but another job has moved the alias since.
    """
    if (rolling := rolling_endpoint(released.name)) is not None:
        note = "; the endpoint file is not applied" if spec else ""
        print(f"endpoint: {rolling} rolls {released.version} in by itself{note}", file=sys.stderr)
        wait_until_serving(RolloutFiles(root, released.name, rolling), released.version, timeout_s)
        return
    name, endpoint = released.name, (spec or DEFAULT_SPEC).application
    expected, before = read_alias(root, name, "stable"), read_deployment(root, name, endpoint)
    write_deployment(root, name, endpoint, [*before, released.version])  # so that none of them is removed meanwhile
    try:
        roll_in(released.uri, name, resources, timeout_s, spec)
    except BaseException:
        write_deployment(root, name, endpoint, before)
        raise
    write_deployment(root, name, endpoint, [released.version])
    try:
        move_alias(root, name, "stable", released.version, expected, who, "rolled out, and serves")
    except ConflictError as error:
        raise ConflictError(
            f"{released.version} serves, but another job moved the alias 'stable' meanwhile ({error}): "
            "release the version again that is to serve"
        ) from None
