"""Invariant 7: what a run was, what changed since, and that a name means one run."""

from pathlib import Path
from typing import Any

import pytest

from factories import tiny_model_config, tiny_recipe, tiny_stage
from warren.config import Change, Duration, GuardConfig, OnResume, Recipe, Resources, StageConfig, ValidationConfig
from warren.config.resume import changes
from warren.data.manifest import Manifest, Shard
from warren.data.model_inputs import Inputs
from warren.data.stream import DatasetSource, Encoding, StreamSpec
from warren.errors import TrainingError
from warren.storage import FileEntry, Location
from warren.train.checkpoint import CheckpointManifest
from warren.train.resume import begin, check_duration, go_on
from warren.train.run import Run
from warren.train.run_record import describe

RESOURCES = Resources(num_workers=2)
SHARD = Shard(FileEntry("shard", 1, "f"), (70,))
SOURCES = [DatasetSource(Location.parse("/data/train/v1"), Manifest("train", "v1", (SHARD,), "tests", "CC0"), 70)]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(Location.parse(str(tmp_path / "runs/r")))


def start(run: Run, recipe: Recipe | None = None, resources: Resources = RESOURCES, **more: Any) -> Any:
    """Begin or go on, as a job does."""
    latest = run.checkpoints.latest()
    record = go_on(run, describe(recipe or tiny_recipe(), "finetune", resources, SOURCES, **more), latest)
    begin(run, record, latest)
    return record


def train_to(run: Run, step: int) -> None:
    run.checkpoints.commit(CheckpointManifest(step, 1, 2, "f", (), run.record() or {}))


def finetune(**changes: Any) -> Recipe:
    return tiny_recipe(finetune=tiny_stage("train@v1", **changes))


def test_a_run_writes_down_what_it_was(run: Run) -> None:
    start(run)
    record: Any = run.record()
    assert record is not None
    assert record["datasets"]["train@v1"]["samples_per_epoch"] == 70
    assert record["recipe"]["finetune"]["seed"] == 3
    assert record["packages"]["torch"] != "absent"
    assert record["git_revision"]


FREE = [
    finetune(max_quarantined_fraction=0.5),
    finetune(checkpoint_every_steps=7),
    finetune(keep_checkpoints=9),
    finetune(guard=GuardConfig(max_skips_in_a_row=9)),
    finetune(validation=ValidationConfig(dataset="test@v1")),
    tiny_recipe("another"),
]


def test_what_does_not_change_the_loss_curve_may_change_and_is_written_down(run: Run) -> None:
    start(run)
    train_to(run, 4)
    for recipe in FREE:
        before = run.record() or {}
        record = start(run, recipe)
        assert record == run.record()
        [*earlier, last] = record["changes"]
        assert earlier == before.get("changes", [])
        assert (last["step"], list(last)) == (4, ["time", "step", "changed"])
        assert any(after == 0.5 for _, after in last["changed"].values()) or recipe is not FREE[0]
    start(run, FREE[-1])
    assert len((run.record() or {})["changes"]) == len(FREE)  # nothing changed the last time
    start(run, FREE[-1], Resources(num_workers=4, micro_batch_size=1))
    changed = (run.record() or {})["changes"][-1]["changed"]
    assert changed == {"resources.num_workers": [2, 4], "resources.micro_batch_size": [8, 1]}


FIXED: list[tuple[dict[str, Any], str]] = [
    ({"recipe": finetune(learning_rate=5e-3)}, r"recipe\.finetune\.learning_rate: 0\.001 → 0\.005"),
    ({"recipe": finetune(seed=4, keep_checkpoints=9)}, r"another recipe \(recipe\.finetune\.seed: 3 → 4\)"),
    ({"recipe": finetune(guard=GuardConfig(spike_factor=2.0))}, r"guard\.spike_factor: None → 2\.0"),
    ({"recipe": finetune(template="bunny")}, r"finetune\.template: None → 'bunny'"),
    ({"recipe": tiny_recipe(model=tiny_model_config(hidden_size=64))}, r"language_model\.config\.hidden_size: 32 → 64"),
    ({"resources": Resources(num_workers=2, precision="bf16")}, r"another resources \(resources\.precision: 'fp32'"),
    ({"origin": {"run": "other"}, "origin_step": 4}, r"exists with another origin \(origin: None → {'run': 'other'}"),
]


@pytest.mark.parametrize(("given", "message"), FIXED)
def test_what_changes_the_loss_curve_is_refused_by_name(run: Run, given: dict[str, Any], message: str) -> None:
    start(run)
    train_to(run, 4)
    before = run.record()
    with pytest.raises(TrainingError, match=rf"{message}.*changes the loss curve.*at step 4.*undo .*--run"):
        start(run, **given)
    assert run.record() == before


def test_a_run_that_never_came_to_a_checkpoint_begins_anew(run: Run) -> None:
    start(run, finetune(template="bunny"))
    (run.folder / "quarantine" / "00000000.parquet").create_bytes(b"of the first try")
    record = start(run, finetune(template="plain"))
    assert record["recipe"]["finetune"]["template"] == "plain"
    assert "changes" not in record
    assert not (run.folder / "quarantine").list()
    record = start(run, finetune(template="plain", max_quarantined_fraction=0.5))
    assert record["changes"][0]["changed"] == {"recipe.finetune.max_quarantined_fraction": [0.001, 0.5]}


def test_what_binds_is_what_the_checkpoint_was_trained_with(run: Run) -> None:
    start(run)
    first = run.record() or {}
    start(run, finetune(seed=4))  # a second job of the same name, while the first had no checkpoint yet
    run.checkpoints.commit(CheckpointManifest(4, 1, 2, "f", (), first))
    assert start(run)["recipe"]["finetune"]["seed"] == 3


def test_a_field_that_an_earlier_version_did_not_know_has_its_default() -> None:
    now = finetune().require("finetune").model_dump(mode="json")
    before = {key: value for key, value in now.items() if key not in ("guard", "adam_betas", "image_padding")}
    assert changes(before, now, "finetune", StageConfig) == []
    changed = {**now, "adam_betas": [0.5, 0.9]}
    assert changes(before, changed, "f", StageConfig) == [
        Change("f.adam_betas", [0.9, 0.999], [0.5, 0.9], OnResume.FIXED)
    ]


def stream(inputs: tuple[Inputs, str], stage: StageConfig) -> StreamSpec:
    encoding = Encoding(inputs[0], inputs[1], stage.max_length_tokens)
    duration = stage.duration
    return StreamSpec(tuple(SOURCES), encoding, 8, stage.seed, 32, duration.steps, duration.epochs)


@pytest.mark.parametrize(
    ("steps_taken", "duration", "refused"),
    [
        (4, Duration(steps=18), False),  # two epochs of nine steps, said otherwise
        (2, Duration(steps=19), False),  # of 18 and of 19 steps two warm up
        (3, Duration(steps=19), True),
        (2, Duration(epochs=4), True),  # four warm up
        (18, Duration(epochs=3), True),  # a finished run
        (4, Duration(steps=3), True),
    ],
)
def test_a_run_may_be_made_longer_only_where_the_steps_taken_keep_their_learning_rates(
    run: Run, tiny_inputs: tuple[Inputs, str], steps_taken: int, duration: Duration, refused: bool
) -> None:
    started = {"warmup_fraction": 0.1, "duration": Duration(epochs=2)}
    start(run, finetune(**started))
    train_to(run, steps_taken)
    recipe = finetune(**{**started, "duration": duration})
    latest = run.checkpoints.latest()
    go_on(run, describe(recipe, "finetune", RESOURCES, SOURCES), latest)
    stage = recipe.require("finetune")
    spec = stream(tiny_inputs, stage)
    if not refused:
        check_duration(run, stage, latest, spec)
        return
    with pytest.raises(
        TrainingError, match=rf"has taken {steps_taken} of 18 steps, and with .*--run NAME --from-run r"
    ):
        check_duration(run, stage, latest, spec)
