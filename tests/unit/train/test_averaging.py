"""Two runs' models averaged into a third run that evaluation and release can read."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch

from factories import tiny_model_config, tiny_recipe
from warren.config import AverageConfig, Recipe
from warren.errors import CheckpointError, ConfigError, TrainingError
from warren.models import build_model, inputs_of, load, save_model, train_tokenizer
from warren.storage import Location
from warren.train.averaging import average_runs
from warren.train.checkpoint import MODEL_FOLDER, CheckpointManifest
from warren.train.run import Run

TOKENIZER = train_tokenizer(["a b c"] * 3, 320)
SOUP = AverageConfig(first="one", second="two", first_weight=0.3)


def soup() -> Recipe:
    return tiny_recipe("soup").model_copy(update={"average": SOUP})


def train(root: Location, name: str, seed: int, folder: Path) -> torch.Tensor:
    """Write a run with one checkpoint of a model from `seed`; return one of its weights."""
    model = build_model(tiny_model_config(), TOKENIZER, seed)
    (folder / MODEL_FOLDER).mkdir(parents=True)
    inputs = inputs_of(tiny_model_config(), TOKENIZER)
    save_model(model.state_dict(), model.config, inputs, TOKENIZER.json, folder / MODEL_FOLDER)
    run = Run(root / "runs" / name)
    files = run.checkpoints.upload(7, "attempt", folder)
    run.checkpoints.commit(CheckpointManifest(7, 1, 2, "f", tuple(files), cast(Any, {"datasets": [{"name": name}]})))
    weight: torch.Tensor = model.lm_head.weight.detach()
    return weight


def test_the_average_is_a_run_with_a_model_and_its_parents(tmp_path: Path) -> None:
    root = Location.parse(str(tmp_path / "storage"))
    one = train(root, "one-finetune", 1, tmp_path / "a")
    two = train(root, "two-finetune", 2, tmp_path / "b")
    run = average_runs(soup(), root, "soup-finetune", "one-finetune", "two-finetune")
    checkpoint = run.checkpoints.latest()
    assert checkpoint is not None
    assert checkpoint.step == 7
    assert [parent["run"] for parent in checkpoint.run["parents"]] == ["one-finetune", "two-finetune"]
    folder = Path(run.checkpoints.at(7).uri) / checkpoint.files[0].path.split("/")[0] / MODEL_FOLDER
    model, _ = load(folder)
    torch.testing.assert_close(model.lm_head.weight, 0.3 * one + 0.7 * two)


def test_what_cannot_be_averaged_is_refused_and_nothing_appears(tmp_path: Path) -> None:
    root = Location.parse(str(tmp_path / "storage"))
    train(root, "one-finetune", 1, tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"'two-finetune' .* has no complete checkpoint"):
        average_runs(soup(), root, "soup-finetune", "one-finetune", "two-finetune")
    with pytest.raises(ConfigError, match="has no section 'average'"):
        average_runs(tiny_recipe("plain"), root, "x", "one-finetune", "one-finetune")
    assert Run(root / "runs" / "soup-finetune").checkpoints.steps() == []
    average_runs(soup(), root, "soup-finetune", "one-finetune", "one-finetune")
    with pytest.raises((CheckpointError, TrainingError)):
        average_runs(soup(), root, "soup-finetune", "one-finetune", "one-finetune")


def test_a_recipe_that_is_an_average_is_not_trained() -> None:
    with pytest.raises(ConfigError, match=r"average of 'one' and 'two': train these two, then run jobs/average\.py"):
        soup().check_trainable()
    tiny_recipe("plain").check_trainable()
