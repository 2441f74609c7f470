"""Evaluation as a Ray Data job on the session's cluster."""

from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray

from factories import colour_sample, make_image, tiny_model_config, tiny_recipe, write_dataset
from warren.cluster.batch.evaluation import evaluate, evaluations_of
from warren.cluster.serve.golden_task import write_golden
from warren.cluster.serve.publish_and_deploy import make_release
from warren.config import EvaluateConfig, Recipe, Resources
from warren.data.golden_cases import CASES_FILE
from warren.data.manifest import dataset_folder
from warren.data.sample import IMAGE_MARK, Sample, Turn
from warren.errors import CorruptDataError, GateError, QuarantineError, ReleaseError, root_cause
from warren.evaluate.evaluation_report import Evaluation
from warren.models import build_model, inputs_of, save_model, train_tokenizer
from warren.release import read_alias, read_release, release_folder
from warren.storage import Location
from warren.train.checkpoint import MODEL_FOLDER, CheckpointManifest
from warren.train.run import Run

pytestmark = pytest.mark.timeout(300)
NUM_SAMPLES = 24
SMALL = Resources(num_workers=1, num_evaluators=1, cpus_per_replica=0.5)
NOWHERE = Resources(num_workers=1, num_evaluators=1, cpus_per_replica=10_000.0)  # what would be measured would wait
CONFIG = EvaluateConfig(dataset="asked@v1", max_new_tokens=2, batch_size=16)


def checkpointed(root: Location, folder: Path, name: str = "untrained") -> Run:
    """Commit a checkpoint of an untrained model."""
    tokenizer = train_tokenizer(["USER: what colour is number 3? ASSISTANT: red green blue black"] * 4, 320)
    model = build_model(tiny_model_config(), tokenizer, seed=1)
    (folder / MODEL_FOLDER).mkdir(parents=True)
    inputs = inputs_of(tiny_model_config(), tokenizer)
    save_model(model.state_dict(), model.config, inputs, tokenizer.json, folder / MODEL_FOLDER)
    run = Run(root / "runs" / name)
    run.checkpoints.commit(CheckpointManifest(1, 1, 0, "f", tuple(run.checkpoints.upload(1, "a1", folder))))
    return run


def column(run: Run, evaluation: Evaluation, file: str, name: str) -> list[Any]:
    folder = evaluations_of(run).at(evaluation.step, evaluation.identity)
    with (folder / file).open() as opened:
        return list(pq.read_table(opened)[name].to_pylist())


def hostile_samples() -> list[Sample]:
    """Return samples of which the first is asked without its image, and the others not at all."""
    turns = tuple(Turn(role, text) for role, text in (("user", "well?"), ("assistant", "red")))  # type: ignore[arg-type]
    second = (*turns, Turn("user", f"{IMAGE_MARK}\nand?"), Turn("assistant", "blue"))
    shown = (Turn("user", f"{IMAGE_MARK}?"), Turn("assistant", "red"))
    return [
        Sample("second-question", (make_image(),), second, "tests"),
        Sample("no-image", (b"no image",), shown, "here.jpg"),
        Sample("too-long", (), (Turn("user", "what " * 999), Turn("assistant", "red")), "tests"),
    ]


def test_what_was_measured_is_what_was_asked_and_the_gate_looks_for_just_that(
    idle_cluster: Any, storage_root: Location, tmp_path: Path
) -> None:
    """Another metric, limit, dataset or model is measured anew; hostile samples are counted apart."""
    root = storage_root / "asked-otherwise"
    write_dataset(root, "asked", [*(colour_sample(i) for i in range(NUM_SAMPLES)), *hostile_samples()])
    run = checkpointed(root, tmp_path / "local")

    every_cpu = SMALL.model_copy(update={"cpus_per_replica": ray.cluster_resources()["CPU"]})  # none left for readers
    with pytest.raises(QuarantineError, match=r"2 of 27 samples of asked@v1 could not be asked, more than .* 1.00%"):
        evaluate(CONFIG, every_cpu, root, run)
    allowed = CONFIG.model_copy(update={"max_quarantined_fraction": 0.1})
    whole = evaluate(allowed, NOWHERE, root, run)  # read, not measured again
    assert (whole.score.num_samples, whole.num_quarantined) == (25, 2)
    assert column(run, whole, "quarantine.parquet", "key") == ["no-image", "too-long"]
    assert column(run, whole, "quarantine.parquet", "source") == ["here.jpg", "tests"]
    asked = [*(colour_sample(i).key for i in range(NUM_SAMPLES)), "second-question"]
    assert column(run, whole, "predictions.parquet", "key") == sorted(asked)
    with pytest.raises(QuarantineError):
        evaluate(CONFIG, NOWHERE, root, run)
    page = (evaluations_of(run).at(1, whole.identity) / "report.html").read_bytes().decode()
    assert page.count("data:image/jpeg") >= 19  # at least as many wrong answers, and their images

    drawn = allowed.model_copy(
        update={"limit_samples": 16, "sample_seed": 3, "metric": "choice", "num_choices": 4}
        | {"max_quarantined_fraction": 1.0}
    )
    part = evaluate(drawn, SMALL, root, run)
    assert (part.metric, part.chance) == ("choice", 0.25)
    assert part.score.num_samples + part.num_quarantined == 16
    assert column(run, part, "predictions.parquet", "key") != [colour_sample(i).key for i in range(16)]
    assert len(evaluations_of(run).of_step(1)) == 2

    check_gate_of(root, run, allowed, whole, drawn)


def check_gate_of(root: Location, run: Run, config: EvaluateConfig, whole: Evaluation, drawn: EvaluateConfig) -> None:
    recipe = tiny_recipe("gated", evaluate=config)
    released = make_release(recipe, root, run, golden=partial(write_golden, SMALL))
    assert released.evaluation == whole
    release = read_release(release_folder(root, "gated", released.version))
    assert release.lineage.evaluations[0].options["max_new_tokens"] == 2
    assert any(entry.path == CASES_FILE for entry in release.files)
    assert read_alias(root, "gated", "candidate") == released.version

    longer = with_evaluate(recipe, max_new_tokens=3)
    with pytest.raises(ReleaseError) as unmeasured:
        make_release(longer, root, run, "python jobs/evaluate.py --recipe gated.yaml")
    assert "exact_match on asked@v1 (batch_size=16, max_new_tokens=3)" in str(unmeasured.value)
    assert "metric=choice" in str(unmeasured.value)
    assert "num_choices=4" in str(unmeasured.value)
    assert str(unmeasured.value).endswith("Measure it first: python jobs/evaluate.py --recipe gated.yaml")
    with pytest.raises(ReleaseError, match="measures a control"):
        make_release(with_evaluate(recipe, shuffled_images=True), root, run)
    strict = recipe.model_copy(update={"release": recipe.require("release").model_copy(update={"gate": gate(1.0)})})
    with pytest.raises(GateError):
        make_release(strict, root, run)

    chosen = make_release(recipe.model_copy(update={"evaluate": drawn}), root, run)
    assert chosen.version != released.version, "a release states its scores and never changes"
    again = make_release(recipe, root, run, golden=partial(write_golden, NOWHERE))  # the release has its cases already
    assert again.version == released.version


def gate(score: float) -> Any:
    return tiny_recipe().require("release").gate.model_copy(update={"min_score": score})


def with_evaluate(recipe: Recipe, **changes: Any) -> Recipe:
    return recipe.model_copy(update={"evaluate": recipe.require("evaluate").model_copy(update=changes)})


@pytest.mark.usefixtures("ray_cluster")
def test_damaged_storage_ends_an_evaluation_with_one_line(storage_root: Location, tmp_path: Path) -> None:
    root = storage_root / "damaged"
    manifest = write_dataset(root, "asked", [colour_sample(i) for i in range(8)])
    run = checkpointed(root, tmp_path / "local")
    shard = dataset_folder(root, "asked@v1") / manifest.shards[0].file.path
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 0xFF
    shard.put_bytes(bytes(data))
    with pytest.raises(Exception, match="is damaged") as damaged:
        evaluate(CONFIG, SMALL, root, run)
    known = root_cause(damaged.value)
    assert type(known) is CorruptDataError
    assert str(known).startswith(f"{shard}, row group 0 is damaged")
    assert "Failed to" not in str(known), "Ray Data's advice is none for us"
    assert not evaluations_of(run).of_step(1)
