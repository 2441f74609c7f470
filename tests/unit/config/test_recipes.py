"""Recipes: strict, with errors that help."""

from pathlib import Path

import pytest

from warren.config import LoraConfig, Recipe, Resources, StageConfig, fingerprint, load_config
from warren.errors import ConfigError

FOLDERS = [Path(__file__).parents[3] / "jobs" / "recipes"]
RESOURCES = [Path(__file__).parents[3] / "jobs" / "resources"]


def load(*overrides: str) -> Recipe:
    return load_config(Recipe, "demo", FOLDERS, overrides)


def test_every_recipe_and_resource_file_is_valid() -> None:
    for folder, schema in ((FOLDERS[0], Recipe), (RESOURCES[0], Resources)):
        for path in folder.glob("*.yaml"):
            assert load_config(schema, path.stem, [folder])


def test_stage_one_trains_only_the_projector_unless_a_recipe_says_otherwise() -> None:
    assert StageConfig.model_fields["trainable"].default == ("projector",)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pretrain.learnig_rate=1", "'pretrain.learnig_rate'; did you mean 'learning_rate'?"),
        ("finetun.seed=1", "'finetun'; did you mean 'finetune'?"),
        ("pretrain.seed=three", "pretrain.seed: Input should be a valid integer (given: 'three')"),
        ("pretrain.seed=3.5", "pretrain.seed: Input should be a valid integer"),
        ("pretrain.global_batch_size=0", "greater than 0 (given: 0)"),
        ("pretrain.duration={epochs: 1, steps: 2}", "give exactly one of 'epochs' and 'steps'"),
        ("pretrain.trainable=[tower]", "pretrain.trainable.0"),
        ("model.tokenizer.train_vocab_size=null", "a pretrained one has its own tokenizer"),
        ("finetune.lora={rank: 0, alpha: 16}", "finetune.lora.rank"),
        ("nonsense", "expected key=value"),
        ("pretrain.seed.x=1", "'seed' is a value"),
    ],
)
def test_wrong_keys_and_values_are_refused_with_what_is_allowed(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(override)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_adapters_without_a_language_model_that_trains_are_refused() -> None:
    lora = "finetune.lora={rank: 8, alpha: 16}"
    assert load(lora).require("finetune").lora == LoraConfig(rank=8, alpha=16, dropout=0.05)
    with pytest.raises(ConfigError, match="but only projector trains: add language_model to trainable, or remove lora"):
        load(lora, "finetune.trainable=[projector]")


def test_compiled_layers_need_whole_weights() -> None:
    assert load_config(Resources, "laptop", RESOURCES, ["compile=true", "zero_stage=2"]).compile
    with pytest.raises(ConfigError, match="compile: true needs zero_stage 2 or less"):
        load_config(Resources, "laptop", RESOURCES, ["compile=true", "zero_stage=3"])


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no recipe named 'dmeo'; did you mean 'demo'"):
        load_config(Recipe, "dmeo", FOLDERS)


def test_overrides_keep_their_yaml_types() -> None:
    recipe = load("pretrain.learning_rate=1e-4", "pretrain.duration={steps: 5}", "pretrain.trainable=[projector]")
    stage = recipe.require("pretrain")
    assert stage.learning_rate == 1e-4
    assert stage.duration.steps == 5
    assert stage.trainable == ("projector",)


def test_extends_merges_deeply_and_refuses_circles(tmp_path: Path) -> None:
    (tmp_path / "child.yaml").write_text("extends: demo\nname: child\npretrain: {seed: 99}\n")
    child = load_config(Recipe, str(tmp_path / "child.yaml"), FOLDERS)
    assert (child.name, child.require("pretrain").seed) == ("child", 99)
    assert child.require("pretrain").global_batch_size == load().require("pretrain").global_batch_size
    (tmp_path / "loop.yaml").write_text(f"extends: {tmp_path / 'loop.yaml'}\n")
    with pytest.raises(ConfigError, match="extends itself"):
        load_config(Recipe, str(tmp_path / "loop.yaml"), FOLDERS)


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "\x00"])
def test_files_that_are_no_mapping_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ConfigError):
        load_config(Recipe, str(tmp_path / "bad.yaml"), FOLDERS)


def test_the_fingerprint_follows_every_key() -> None:
    assert fingerprint(load()) == fingerprint(load())
    assert fingerprint(load()) != fingerprint(load("finetune.seed=77"))


def test_a_stage_trains_on_one_dataset_or_on_several() -> None:
    assert [component.name for component in load().require("finetune").mixture] == ["easy-vqa-train@v1"]
    two = load("finetune.dataset=null", "finetune.datasets=[{name: a@v1, weight: 3}, {name: b@v1, weight: 1}]")
    mixture = two.require("finetune").mixture
    assert [(component.name, component.weight) for component in mixture] == [("a@v1", 3.0), ("b@v1", 1.0)]


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        ("[]", "exactly one of 'dataset' and 'datasets'"),
        ("[{name: a@v1}, {name: a@v1}]", "name each dataset once"),
        ("[{name: a@v1, weight: 1}, {name: b@v1}]", "a 'weight' to all of them or to none"),
        ("[{name: a@v1, epochs: 1, samples: 5}]", "at most one of 'epochs', 'samples' and 'weight'"),
        ("[{name: a@v1, epochs: 0}]", "greater than 0 (given: 0)"),
    ],
)
def test_mixtures_that_make_no_sense_are_refused(datasets: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load("finetune.dataset=null", f"finetune.datasets={datasets}")
    assert message in str(caught.value)
