"""A recipe over another: what excludes each other is not mixed, and an error tells what was inherited."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from warren.config import Recipe, Section, load_config
from warren.config.layered_config import Config, node_type
from warren.errors import ConfigError

FOLDERS = [Path(__file__).parents[3] / "jobs" / "recipes"]


@pytest.fixture
def over(tmp_path: Path) -> Any:
    """Load what a file over another recipe says."""

    def load(base: str, text: str, *overrides: str) -> Recipe:
        (tmp_path / "own.yaml").write_text(yaml.safe_dump({"extends": base, "name": "own", **yaml.safe_load(text)}))
        return load_config(Recipe, str(tmp_path / "own.yaml"), FOLDERS, overrides)

    return load


CASES = [
    ("demo", "pretrain: {duration: {steps: 10}}", "pretrain.duration", {"epochs": None, "steps": 10}),
    ("demo", "finetune: {duration: {epochs: 2}}", "finetune.duration", {"epochs": 2, "steps": None}),
    ("demo", "pretrain: {datasets: [{name: a@v1}, {name: b@v1}]}", "pretrain", {"dataset": None}),
    (
        "demo",
        "ingest: {source: table, name: c, path: p.jsonl, columns: {caption: caption}}",
        "ingest",
        {"source": "table", "questions_per_conversation": 1, "licence": "unknown", "version": "v1"},
    ),
    ("smollm2-dinov2", "ingest: {columns: {conversations: talk}}", "ingest.columns", {"caption": None}),
    ("smollm2-dinov2", "ingest: {source: easy-vqa}", "ingest", {"path": None, "name": None}),
    (
        "demo",
        "model: {vision_tower: {name: siglip-so400m-384}}",
        "model.vision_tower",
        {"family": "siglip", "pretrained": "google/siglip-so400m-patch14-384"},
    ),
    (
        "smollm2-dinov2",
        "model: {vision_tower: {name: clip-l-336}}",
        "model.vision_tower",
        {"family": "clip", "pretrained": "openai/clip-vit-large-patch14-336"},
    ),
    ("bunny", "model: {vision_tower: {family: clip}}", "model.vision_tower", {"name": None, "pretrained": None}),
    (
        "demo",
        "model: {language_model: {name: phi-2}}",
        "model.language_model",
        {"model_type": "phi", "pretrained": "microsoft/phi-2", "eos_token": "<|endoftext|>"},
    ),
    ("demo", "model: {language_model: {name: phi-2}}", "model.tokenizer", {"train_vocab_size": None}),
    (
        "bunny",
        'model: {language_model: {pretrained: "s3://models/my-llama", eos_token: "<|end|>"}}',
        "model.language_model",
        {"name": None, "model_type": None, "config": {}, "eos_token": "<|end|>", "pad_token": None},
    ),
]


@pytest.mark.parametrize(("base", "text", "where", "expected"), CASES)
def test_one_alternative_takes_the_place_of_the_inherited_other(
    over: Any, base: str, text: str, where: str, expected: dict[str, Any]
) -> None:
    node = over(base, text)
    for part in where.split("."):
        node = getattr(node, part)
    assert {key: getattr(node, key) for key in expected} == expected


@pytest.mark.parametrize(
    "override",
    [
        ["pretrain.duration.steps=5"],
        ["pretrain.duration={steps: 5}"],
        ["pretrain.duration.epochs=null", "pretrain.duration.steps=5"],
    ],
)
def test_the_command_line_is_a_layer_too(override: list[str]) -> None:
    duration = load_config(Recipe, "demo", FOLDERS, override).require("pretrain").duration
    assert (duration.steps, duration.epochs) == (5, None)
    datasets = ["finetune.datasets=[{name: a@v1}]", "model.vision_tower.name=siglip-so400m-384"]
    recipe = load_config(Recipe, "demo", FOLDERS, datasets)
    assert recipe.require("finetune").dataset is None
    assert recipe.require("model").vision_tower.config["num_hidden_layers"] == 27


def test_the_named_tower_is_the_named_one_in_all_its_sizes(over: Any) -> None:
    named = load_config(Recipe, "bunny", FOLDERS).require("model").vision_tower
    assert over("demo", "model: {vision_tower: {name: siglip-so400m-384}}").model.vision_tower == named
    fewer = over("demo", "model: {vision_tower: {name: siglip-so400m-384, config: {num_hidden_layers: 26}}}")
    assert fewer.model.vision_tower.config == {**named.config, "num_hidden_layers": 26}


def test_what_one_layer_says_twice_is_refused_and_not_chosen_from(over: Any) -> None:
    with pytest.raises(ConfigError, match="exactly one of 'epochs' and 'steps'"):
        over("bunny", "pretrain: {duration: {steps: 10, epochs: 1}}")
    with pytest.raises(ConfigError, match="exactly one of 'epochs' and 'steps'"):
        load_config(Recipe, "demo", FOLDERS, ["pretrain.duration.steps=5", "pretrain.duration.epochs=5"])


def test_what_says_the_same_again_or_nothing_takes_no_place(over: Any) -> None:
    again = over("demo", "model: {vision_tower: {family: siglip, config: {num_hidden_layers: 4}}}")
    assert again.model.vision_tower.config["hidden_size"] == 64
    assert over("demo", "pretrain: {datasets: []}").pretrain.dataset == "easy-vqa-captions@v1"
    assert over("demo", "ingest: {source: easy-vqa, version: v2}").ingest.questions_per_conversation == 2


def test_an_error_tells_what_is_inherited_and_the_advice_works(over: Any) -> None:
    text = "finetune: {trainable: [projector]}"
    with pytest.raises(ConfigError, match=r"lora is inherited from bunny, 'lora: null' under 'finetune' unsets it"):
        over("bunny", text)
    with pytest.raises(ConfigError, match=r"inherited from bunny, --set finetune\.lora=null unsets it"):
        over("bunny", "{}", "finetune.trainable=[projector]")
    assert over("bunny", "finetune: {trainable: [projector], lora: null}").finetune.lora is None
    assert over("bunny", text, "finetune.lora=null").finetune.lora is None


def test_a_null_leaves_the_default_where_there_is_no_null(over: Any) -> None:
    assert over("demo", "pretrain: {trainable: null}").pretrain.trainable == ("projector",)
    with pytest.raises(ConfigError, match=r"pretrain\.learning_rate: is required"):
        over("demo", "pretrain: {learning_rate: null}")
    assert over("demo", "{}", "finetune.lora.rank=8", "finetune.lora.alpha=16").finetune.lora.rank == 8


def test_files_extend_what_lies_beside_them(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("extends: demo\nname: base\npretrain: {seed: 5}\n")
    (tmp_path / "own.yaml").write_text("extends: base.yaml\nname: own\n")
    (tmp_path / "short.yaml").write_text("extends: base\nname: short\n")
    for name in ("own", "short"):
        assert load_config(Recipe, str(tmp_path / f"{name}.yaml"), FOLDERS).require("pretrain").seed == 5


def test_aliases_in_a_file_stay_apart_when_a_layer_changes_one(tmp_path: Path) -> None:
    text = "extends: demo\nname: a\npretrain: {guard: &g {spike_factor: 2.0}}\nfinetune: {guard: *g}\n"
    (tmp_path / "a.yaml").write_text(text)
    recipe = load_config(Recipe, str(tmp_path / "a.yaml"), FOLDERS, ["finetune.guard.spike_factor=3.0"])
    assert (recipe.require("pretrain").guard.spike_factor, recipe.require("finetune").guard.spike_factor) == (2.0, 3.0)


def nodes(schema: type[Config]) -> set[type[Config]]:
    below = {found for key in schema.model_fields if (found := node_type(schema, key))}
    return {schema}.union(*(nodes(node) for node in below))  # type: ignore[arg-type]


def test_every_rule_names_keys_that_exist() -> None:
    ruled = [node for node in nodes(Recipe) if node.replaces]
    assert len(ruled) >= 7
    for node in ruled:
        for key in {*node.replaces, *(other for others in node.replaces.values() for other in others)}:
            schema: type[BaseModel] = node
            for part in key.split("."):
                assert part in schema.model_fields, (node, key)
                schema = node_type(schema, part) or schema


@pytest.mark.parametrize("section", ["ingest", "evaluate", "release", "finetune"])
def test_a_recipe_may_hold_what_its_job_needs_and_nothing_else(tmp_path: Path, section: Section) -> None:
    whole = load_config(Recipe, "demo", FOLDERS).model_dump(mode="json", exclude_none=True)
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"name": "own", section: whole[section]}))
    recipe = load_config(Recipe, str(tmp_path / "own.yaml"), FOLDERS)
    assert recipe.require(section)
    with pytest.raises(ConfigError, match="recipe 'own' has no section 'pretrain': add one"):
        recipe.require("pretrain")


def test_a_recipe_without_a_name_has_its_files(tmp_path: Path) -> None:
    (tmp_path / "my-recipe.yaml").write_text("ingest: {source: webdataset, name: laion-2m, path: s3://raw/laion}\n")
    recipe = load_config(Recipe, str(tmp_path / "my-recipe.yaml"), FOLDERS)
    assert (recipe.name, recipe.require("ingest").name) == ("my-recipe", "laion-2m")
