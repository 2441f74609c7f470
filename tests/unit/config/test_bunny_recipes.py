"""The published recipes hold what Bunny's scripts and tutorials say (BAAI-DCAI/Bunny at 08273ac).

`golden/bunny_recipes.csv` is a transcript of their tables: one line a trained model; the averaged ones have two.
"""

import csv
from pathlib import Path

import pytest

from warren.config import Recipe, Resources, load_config
from warren.data.batch import Cut

TESTS = Path(__file__).parents[2]
JOBS = TESTS.parent / "jobs"
TABLE = list(csv.DictReader((TESTS / "golden" / "bunny_recipes.csv").open()))
SOUPS = {"bunny-v1_0-4b": 0.3, "bunny-v1_1-4b": 0.3, "bunny-llama-3-8b-v": 0.5, "bunny-v1_1-llama-3-8b-v": 0.42}


def load(name: str) -> Recipe:
    return load_config(Recipe, name, [JOBS / "recipes"])


@pytest.mark.parametrize("row", TABLE, ids=[row["recipe"] for row in TABLE])
def test_a_recipe_is_the_published_one(row: dict[str, str]) -> None:
    recipe = load(row["recipe"])
    assert recipe.name == row["recipe"]
    model, one, two = recipe.require("model"), recipe.require("pretrain"), recipe.require("finetune")
    assert (model.language_model.pretrained, model.template) == (row["language_model"], row["template"])
    assert model.vision_tower.pretrained == row["vision_tower"]
    assert model.vision_tower.scales_px == ((384, 768, 1152) if row["s2"] == "yes" else None)
    assert model.projector.type == "mlp2x_gelu"
    assert two.lora is not None
    assert (two.lora.rank, two.lora.alpha, two.lora.dropout) == (int(row["lora_rank"]), int(row["lora_alpha"]), 0.05)
    assert one.learning_rate == float(row["stage1_learning_rate"])
    assert (two.learning_rate, two.projector_learning_rate) == (
        float(row["learning_rate"]),
        float(row["projector_learning_rate"]),
    )
    assert two.vision_tower_learning_rate is None  # Bunny's rule: the tower takes the projector's
    assert two.dataset == f"{row['dataset']}@v1"
    assert set(two.trainable) - {"vision_tower"} == {"projector", "language_model"}
    assert ("vision_tower" in two.trainable) == (row["vision_tower_trained"] == "yes")
    assert two.max_length_tokens == int(row["max_length"])
    resources = "gpu-8-zero3-long" if row["micro_batch"] == "4" else "gpu-8-zero3"
    check_cut(two.global_batch_size, resources, 3, int(row["micro_batch"]), int(row["accumulation"]))


@pytest.mark.parametrize("row", TABLE, ids=[row["recipe"] for row in TABLE])
def test_what_all_published_models_share(row: dict[str, str]) -> None:
    recipe = load(row["recipe"])
    one, two = recipe.require("pretrain"), recipe.require("finetune")
    assert (one.dataset, one.template, one.trainable) == ("bunny-pretrain-laion-2m@v1", "plain", ("projector",))
    assert (one.global_batch_size, two.global_batch_size) == (256, 128)
    assert (one.image_padding, two.image_padding) == (False, True)
    assert (one.max_length_tokens, one.lora, two.template) == (2048, None, None)
    check_cut(one.global_batch_size, "gpu-8", 2, 8, 4)
    for stage in (one, two):
        assert stage.duration.epochs == 1
        assert (stage.warmup_fraction, stage.weight_decay, stage.max_grad_norm) == (0.03, 0.0, 1.0)
        assert (stage.adam_betas, stage.adam_epsilon, stage.seed) == ((0.9, 0.999), 1e-8, 42)


def check_cut(global_batch_size: int, name: str, zero_stage: int, micro_batch: int, accumulation: int) -> None:
    resources = load_config(Resources, name, [JOBS / "resources"])
    assert (resources.num_workers, resources.zero_stage, resources.precision) == (8, zero_stage, "bf16")
    assert (resources.micro_batch_size, resources.gradient_checkpointing) == (micro_batch, True)
    assert Cut.of(global_batch_size, 8, micro_batch).num_micro_batches == accumulation


@pytest.mark.parametrize(("name", "weight"), SOUPS.items())
def test_an_averaged_model_names_its_halves_and_their_weight(name: str, weight: float) -> None:
    recipe = load(name)
    assert recipe.average is not None
    assert (recipe.average.first, recipe.average.second) == (f"{name}-recipe-1", f"{name}-recipe-2")
    assert recipe.average.first_weight == weight
    assert recipe.model == load(recipe.average.second).model  # Bunny keeps the second's configuration


def test_every_published_recipe_is_in_the_table() -> None:
    names = {path.stem for path in (JOBS / "recipes").glob("bunny-*.yaml")}
    assert names - {"bunny-full"} == {row["recipe"] for row in TABLE} | set(SOUPS)
    assert len(names - {"bunny-full"}) == 12 + 8


def test_full_tuning_has_one_learning_rate() -> None:
    stage = load("bunny-full").require("finetune")
    assert (stage.lora, stage.learning_rate, stage.projector_learning_rate) == (None, 2e-5, None)
