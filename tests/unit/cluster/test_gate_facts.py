"""From a checkpoint to a release: lineage and verdict are gathered, stable is compared question by question."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from factories import colour_sample, tiny_recipe, write_dataset
from warren.cluster.batch.evaluation import evaluations_of, identify
from warren.cluster.serve.publish_and_deploy import make_release
from warren.config import GateConfig, Recipe, ReleaseConfig, SanityPrompt
from warren.data.manifest import Manifest, read_manifest, write_manifest
from warren.errors import GateError, ReleaseError
from warren.evaluate.accuracy import score
from warren.evaluate.evaluation_report import Evaluation
from warren.release import (
    EngineProbe,
    GateOverride,
    GateVerdict,
    ParentModel,
    ProbedAnswer,
    Registry,
    read_verdict,
)
from warren.storage import Location, StoredFiles
from warren.train.checkpoint import MODEL_FOLDER, CheckpointManifest
from warren.train.run import Run

NUM_QUESTIONS = 40
CERTIFICATE = {"file": "contamination.json", "sha256": "s", "samples_matched": 1, "removed": True}


@pytest.fixture
def root(tmp_path: Path) -> Location:
    root = Location.parse(str(tmp_path / "store"))
    test = write_dataset(root, "test", [colour_sample(0)])
    plain = write_dataset(root, "captions", [colour_sample(1)])
    clean = {"certificate": CERTIFICATE | {"free_of": {"test@v1": test.digest}}}
    write_manifest(root, Manifest("clean", "v1", plain.shards, "tests", "CC0", {}, clean))
    return root


def checkpoint(root: Location, local: Path, name: str, num_right: int, **record: Any) -> Run:
    """Store a run of one checkpoint that answers so many of the questions right."""
    run = Run.of(root, name)
    folder = local / name / MODEL_FOLDER
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text(name)
    files = tuple(run.checkpoints.upload(3, "a1", local / name))
    run.checkpoints.commit(CheckpointManifest(3, 1, 0, "f", files, record))  # type: ignore[arg-type]
    run.write(record)  # type: ignore[arg-type]
    measure(root, run, tiny_recipe(), num_right)
    return run


def measure(root: Location, run: Run, recipe: Recipe, num_right: int, **changed: Any) -> None:
    config = recipe.require("evaluate")
    identity = replace(identify(config, run.newest_checkpoint(), read_manifest(root, config.dataset)), **changed)
    right = [number < num_right for number in range(NUM_QUESTIONS)]
    evaluation = Evaluation(run.name, 3, identity, score(right, ["red"] * NUM_QUESTIONS), {})
    evaluations_of(run).write(
        evaluation,
        [{"key": f"q{n}", "correct": each, "answer": "red" if each else " "} for n, each in enumerate(right)],
    )


def gated(**gate: Any) -> Recipe:
    return tiny_recipe(release=ReleaseConfig(name="tiny", gate=GateConfig(**{"min_score": 0.0, **gate})))


def datasets(*references: str, **of: Any) -> dict[str, Any]:
    return {reference: {"digest": of.get(reference.partition("@")[0], "d"), "rows": 1} for reference in references}


def refused_verdict(run: Run) -> GateVerdict:
    [folder] = [each for each in (run.folder / "evaluations").list() if each.name == "verdict.json"]
    verdict = read_verdict(Location(folder.uri.rpartition("/")[0]))
    assert verdict is not None
    return verdict


def test_a_job_that_was_interrupted_moves_the_alias_once_and_any_checkpoint_can_be_released(
    root: Location, tmp_path: Path
) -> None:
    registry, recipe = Registry(root, "tiny"), gated()
    run = checkpoint(root, tmp_path, "run", 36)
    evaluated = run.newest_checkpoint()
    files = tuple(run.checkpoints.upload(5, "a1", tmp_path / "run"))
    run.checkpoints.commit(CheckpointManifest(5, 1, 0, "f", files))
    with pytest.raises(ReleaseError, match=r"step 5 of run 'run' was not measured.* first: evaluate$"):
        make_release(recipe, root, run, "evaluate")
    released = make_release(recipe, root, run, checkpoint=evaluated, once=True)
    assert released.version == "run-00000003"
    other = make_release(recipe, root, checkpoint(root, tmp_path, "other", 36))
    assert make_release(recipe, root, run, checkpoint=evaluated, once=True).version == "run-00000003"
    assert [move.after for move in registry.history("candidate")] == ["run-00000003", other.version], "it was candidate"
    make_release(recipe, root, run, checkpoint=evaluated)
    assert registry.alias("candidate") == "run-00000003", "a person may move it back"
    longer = recipe.model_copy(update={"evaluate": recipe.require("evaluate").model_copy(update={"max_new_tokens": 9})})
    with pytest.raises(ReleaseError, match=r"Measure it first: evaluate --step 3$"):
        make_release(longer, root, run, "evaluate", checkpoint=evaluated)


def test_a_model_that_is_worse_on_the_same_questions_is_refused_and_the_verdict_can_be_read(
    root: Location, tmp_path: Path
) -> None:
    registry, recipe = Registry(root, "tiny"), gated(no_regression=True)
    good = checkpoint(root, tmp_path, "good", 36)
    first = make_release(recipe, root, good, who="ada")
    assert [check.reason for check in first.verdict.checks][1] == "there is no stable release to compare with yet"
    [move] = registry.history("candidate")
    assert (move.who, move.why) == ("ada", "released from run good at step 3")
    registry.move("stable", first.version, expected=None)
    for strict in (recipe, gated(no_regression=True, max_regression=0.0)):
        assert make_release(strict, root, good).version == first.version, "it is no worse than itself"

    worse = checkpoint(root, tmp_path, "worse", 24)
    with pytest.raises(GateError, match=r"-0\.3000 against good-00000003 on 40 questions .* worse: not released"):
        make_release(recipe, root, worse)
    assert registry.versions() == [first.version]
    assert (refused_verdict(worse).passed, refused_verdict(worse).stable) == (False, first.version)
    assert make_release(recipe, root, checkpoint(root, tmp_path, "as-good", 34)).verdict.passed, "by chance"

    forced = make_release(recipe, root, worse, override=GateOverride("bob", "a demonstration"))
    verdict = registry.verdict(forced.version)
    assert verdict is not None
    assert verdict.override is not None
    assert (verdict.passed, verdict.override.who, verdict.override.why) == (False, "bob", "a demonstration")
    assert registry.history("candidate")[-1].why.endswith("the gate refused it, bob overrode that: a demonstration")


def test_what_cannot_be_compared_is_refused_with_the_reason(root: Location, tmp_path: Path) -> None:
    registry, recipe = Registry(root, "tiny"), gated(no_regression=True)
    stable = make_release(recipe, root, checkpoint(root, tmp_path, "good", 36))
    registry.move("stable", stable.version, expected=None)
    longer = recipe.require("evaluate").model_copy(update={"max_new_tokens": 9})
    asked = recipe.model_copy(update={"evaluate": longer})
    run = checkpoint(root, tmp_path, "other", 36)
    measure(root, run, asked, 36)
    measure(root, Run.of(root, "good"), asked, 0, checkpoint="other weights at that step")
    with pytest.raises(GateError, match=r"is stable, but was not measured by exact_match .*max_new_tokens=9"):
        make_release(asked, root, run)

    with pytest.raises(
        GateError, match=r"10\.00% of the answers are empty.*; 90\.00% of the answers are 'red', the gate"
    ):
        make_release(gated(max_empty_fraction=0.05, max_same_answer_fraction=0.5), root, run)
    for each in (root / "runs" / "good" / "evaluations").list():
        if each.name == "predictions.parquet":
            each.store.delete(each.key)
    with pytest.raises(GateError, match="answers are missing"):
        make_release(recipe, root, run)
    manifest = registry.folder / stable.version / "release.json"
    manifest.store.delete(manifest.key)
    with pytest.raises(GateError, match="is stable, but cannot be read"):
        make_release(recipe, root, run)


def test_lineage_names_every_stage_and_its_certificates(root: Location, tmp_path: Path) -> None:
    digest = read_manifest(root, "clean@v1").digest
    checkpoint(
        root, tmp_path, "base", 0, stage="pretrain", fingerprint="b", datasets=datasets("captions@v1", "gone@v1")
    )
    record = {"stage": "finetune", "origin": {"run": "base"}, "origin_step": 3, "packages": {"torch": "2"}}
    tuned = checkpoint(root, tmp_path, "tuned", 40, **record, datasets=datasets("clean@v1", clean=digest))
    released = make_release(gated(), root, tuned)
    lineage = Registry(root, "tiny").read(released.version).lineage
    assert (lineage.run, lineage.step, lineage.stage, lineage.packages) == ("tuned", 3, "finetune", {"torch": "2"})
    assert lineage.parents == (ParentModel("origin", "base", 3, fingerprint="b"),)
    assert [(each.reference, each.stage, each.decontamination is not None) for each in lineage.datasets] == [
        ("captions@v1", "pretrain", False),
        ("clean@v1", "finetune", True),
        ("gone@v1", "pretrain", False),
    ]
    with pytest.raises(GateError, match=r"captions@v1, gone@v1 has no certificate of being free of images of test@v1"):
        make_release(gated(contamination_certificate=True), root, tuned)

    alone = checkpoint(root, tmp_path, "alone", 40, datasets=datasets("clean@v1", clean=digest))
    assert make_release(gated(contamination_certificate=True), root, alone).verdict.passed
    changed = checkpoint(root, tmp_path, "changed", 40, datasets=datasets("clean@v1", clean="of other content"))
    with pytest.raises(GateError, match="clean@v1 has no certificate"):
        make_release(gated(contamination_certificate=True), root, changed)


def test_lineage_of_an_average_and_of_a_model_that_began_as_a_release(root: Location, tmp_path: Path) -> None:
    one, two = ({"run": name, "step": 3, "fingerprint": name, "datasets": datasets(f"{name}@v1")} for name in "ab")
    soup = checkpoint(
        root, tmp_path, "soup", 40, stage="average", parents=[one, two], recipe={"average": {"first_weight": 0.3}}
    )
    released = make_release(gated(), root, soup)
    lineage = Registry(root, "tiny").read(released.version).lineage
    assert [(each.run, each.weight) for each in lineage.parents] == [("a", 0.3), ("b", 0.7)]
    assert [each.reference for each in lineage.datasets] == ["a@v1", "b@v1"]

    child = checkpoint(root, tmp_path, "child", 40, origin={"model": released.uri}, datasets=datasets("c@v1"))
    grown = Registry(root, "tiny").read(make_release(gated(), root, child).version).lineage
    assert grown.parents == (ParentModel("origin", model=released.uri),)
    assert grown.parents[0].release == ("tiny", released.version)
    assert [each.reference for each in grown.datasets] == ["a@v1", "b@v1", "c@v1"]


def test_an_engine_is_asked_where_the_gate_asks_for_it(root: Location, tmp_path: Path) -> None:
    asked: list[GateConfig] = []

    def probe(gate: GateConfig, model: StoredFiles) -> EngineProbe:
        asked.append(gate)
        assert [entry.path for entry in model.files] == ["model.safetensors"]
        return EngineProbe(0.1, 0.01, 1000, "1 CPU", (ProbedAnswer("2+2?", "five"),))

    run = checkpoint(root, tmp_path, "good", 36)
    make_release(gated(), root, run, probe=probe)
    assert asked == []
    with pytest.raises(
        GateError, match=r"the engine takes 1,000 bytes on 1 CPU, the gate allows 999 bytes; the answer"
    ):
        make_release(
            gated(max_memory_bytes=999, sanity_prompts=(SanityPrompt(text="2+2?", matches="4|four"),)),
            *(root, run),
            probe=probe,
        )
    assert [check.name for check in refused_verdict(run).checks] == ["min_score", "max_memory_bytes", "sanity_prompts"]
    with pytest.raises(GateError, match="no engine of it was asked"):
        make_release(gated(max_token_s=1.0), root, run)
