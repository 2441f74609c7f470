"""The dry run's numbers are the published ones, where there are any, and follow the ZeRO paper's formulas."""

from pathlib import Path

import pytest

from warren.config import Recipe, Resources, load_config
from warren.errors import ConfigError
from warren.train.dry_run import dry_run
from warren.train.estimate import Estimate, estimate

JOBS = Path(__file__).parents[3] / "jobs"


def recipe_of(name: str, *overrides: str) -> Recipe:
    return load_config(Recipe, name, [JOBS / "recipes"], overrides)


def resources_of(name: str, *overrides: str) -> Resources:
    return load_config(Resources, name, [JOBS / "resources"], overrides)


@pytest.fixture(scope="module")
def phi2() -> Estimate:
    recipe = recipe_of("bunny-v1_0-3b")
    return estimate(recipe, recipe.require("finetune"), resources_of("gpu-8-zero3"), 695_000)


def test_parameters_and_steps_are_the_published_ones(phi2: Estimate) -> None:
    assert phi2.parameters["projector"] == (9_507_840, 9_507_840)  # 9.51 M for phi-2 with SigLIP
    adapters = 32 * 128 * (4 * (2560 + 2560) + 2 * (2560 + 10240))  # q, k, v, dense, fc1, fc2 of every layer
    assert phi2.parameters["language_model"][1] == adapters
    assert phi2.parameters["vision_tower"][1] == 0
    assert (phi2.num_steps, phi2.tokens_per_image, phi2.num_micro_batches) == (5_430, 729, 2)


def test_memory_follows_the_zero_paper(phi2: Estimate) -> None:
    total = sum(count for count, _ in phi2.parameters.values())
    none, one, two, three = phi2.memory
    assert (none.weights, none.gradients, none.optimizer) == (2 * total, 2 * phi2.trained, 12 * phi2.trained)
    assert (one.weights, one.gradients, one.optimizer) == (2 * total, 2 * phi2.trained, 12 * phi2.trained // 8)
    assert (two.weights, two.gradients) == (2 * total, 2 * phi2.trained // 8)
    assert three.weights == -(-2 * total // 8) + 2 * 10**9  # its share, and the parameters that are gathered at a time
    assert none.total > one.total > two.total > three.total


def test_what_is_offloaded_moves_to_the_host() -> None:
    recipe = recipe_of("bunny-v1_0-3b")
    _, one, two, three = estimate(recipe, recipe.require("finetune"), resources_of("gpu-8-zero3"), None).memory
    resources = resources_of("gpu-8-zero3", "offload=[optimizer, weights]")
    none, *offloaded = estimate(recipe, recipe.require("finetune"), resources, None).memory
    assert none.host == 0
    assert [memory.host for memory in offloaded[:2]] == [one.optimizer, two.optimizer + two.gradients]
    assert offloaded[2].weights == 2 * 10**9  # what is gathered at a time
    assert [found.total + found.host for found in offloaded] == [before.total for before in (one, two, three)]
    text = dry_run(recipe, "finetune", resources, None)
    assert '"offload_param"' in text
    assert "together      host" in text


def test_checkpointing_and_frozen_towers_save_activations() -> None:
    recipe = recipe_of("demo")
    all_kept, fewer = (
        estimate(
            recipe, recipe.require("finetune"), resources_of("laptop", f"gradient_checkpointing={on}"), None
        ).memory[0]
        for on in ("false", "true")
    )
    assert all_kept.activations > fewer.activations
    frozen = recipe_of("demo", "finetune.trainable=[projector, language_model]")
    kept = estimate(frozen, frozen.require("finetune"), resources_of("laptop"), None).memory[0]
    assert kept.activations < all_kept.activations


def test_the_text_says_what_is_known_and_what_is_not() -> None:
    text = dry_run(recipe_of("demo"), "finetune", resources_of("laptop"), None)
    assert "500 of 32 samples = 2 workers × 32 × 1" in text
    assert "unknown samples an epoch (the dataset is not in storage)" in text
    assert '"train_micro_batch_size_per_gpu": 32' in text
    assert text.count("← these resources") == 1


def test_sizes_that_are_nowhere_at_hand_are_an_error() -> None:
    recipe = recipe_of("bunny-v1_0-3b", "model.language_model={pretrained: nobody/nothing}")
    with pytest.raises(ConfigError, match="'nobody/nothing' is no folder here, and the hub does not give it"):
        dry_run(recipe, "pretrain", resources_of("gpu-8"), None)


def test_a_template_that_does_not_exist_is_refused_by_its_key() -> None:
    for key in ("pretrain", "finetune", "model"):
        with pytest.raises(ConfigError, match=rf"{key}\.template: no template named 'vicuna'; valid: .*native"):
            dry_run(recipe_of("demo", f"{key}.template=vicuna"), "pretrain", resources_of("laptop"), None)


def test_a_stage_whose_checkpoints_are_evaluated_says_so() -> None:
    overrides = ["finetune.evaluate_every_checkpoints=2", "release.when=best_evaluated"]
    text = dry_run(recipe_of("demo", *overrides), "finetune", resources_of("laptop"), None)
    score = "easy-vqa-test@v1/exact_match"
    line = (
        f"checkpoints every 1,000 steps and the last, by {score}; best by {score}; released by itself: best_evaluated"
    )
    assert line in text
    assert "evaluated" not in dry_run(recipe_of("demo"), "finetune", resources_of("laptop"), None)
