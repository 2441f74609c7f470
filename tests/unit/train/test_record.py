"""Invariant 7: what a run was, and that a name means one run."""

from pathlib import Path

import pytest

from factories import tiny_recipe, tiny_stage
from warren.config import Resources
from warren.data.manifest import Manifest
from warren.data.stream import Source
from warren.errors import TrainingError
from warren.storage import Location
from warren.train.record import Run, describe

RESOURCES = Resources(num_workers=2)
SOURCES = [Source(Location.parse("/data/train/v1"), Manifest("train", "v1", (), "tests", "CC0"), 70)]


def test_a_run_writes_down_what_it_was(tmp_path: Path) -> None:
    run = Run(Location.parse(str(tmp_path / "runs/r")))
    run.begin(describe(tiny_recipe(), "finetune", RESOURCES, SOURCES))
    record = (run.folder / "run.json").read_json()
    assert record["datasets"]["train@v1"]["samples_per_epoch"] == 70
    assert record["recipe"]["finetune"]["seed"] == 3
    assert record["packages"]["torch"] != "absent"
    assert record["git_revision"]


def test_the_same_recipe_goes_on_and_another_is_refused(tmp_path: Path) -> None:
    run = Run(Location.parse(str(tmp_path / "runs/r")))
    first = run.begin(describe(tiny_recipe(), "finetune", RESOURCES, SOURCES))
    assert run.begin(describe(tiny_recipe(), "finetune", Resources(num_workers=4), SOURCES)) == first
    changed = tiny_recipe(finetune=tiny_stage("train@v1", learning_rate=5e-3))
    with pytest.raises(TrainingError, match=r"recipe\.finetune\.learning_rate: 0\.001 → 0\.005.*--run"):
        run.begin(describe(changed, "finetune", RESOURCES, SOURCES))
