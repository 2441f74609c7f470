"""LoRA adapters of a model in training: where they sit, and how they leave it."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import LlavaForConditionalGeneration

from factories import tiny_model_config
from warren.config import LoraConfig, ModelConfig
from warren.config.model import ModelPart
from warren.models import add_adapters, build_model, freeze_all_but, inputs_of, load_bundle, merge_adapter, save_model
from warren.models.adapters import is_adapter, merged_state, save_adapter
from warren.models.lora_merge import PEFT_PREFIX
from warren.models.tokenizer import TrainedTokenizer, train_tokenizer

LORA = LoraConfig(rank=4, alpha=8)
BUNNY_TARGETS = {  # bunny.md 3.4, as Bunny's code computes them
    "phi": {"q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"},
    "phi3": {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"},
    "llama": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "qwen2": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
    "stablelm": {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
}


@pytest.fixture(scope="module")
def tokenizer() -> TrainedTokenizer:
    return train_tokenizer(["USER: what colour is it? ASSISTANT: red"] * 4, 300)


def of_type(model_type: str) -> ModelConfig:
    config = tiny_model_config()
    extra = {"pad_token_id": 1} if model_type == "phi3" else {}
    language_model = config.language_model
    changed = {"model_type": model_type, "config": {**language_model.config, **extra}}
    return config.model_copy(update={"language_model": language_model.model_copy(update=changed)})


def moved(model: nn.Module) -> nn.Module:
    """Change every trainable parameter, as training does."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def logits(model: nn.Module) -> torch.Tensor:
    ids = torch.tensor([[5, *[2] * 16, 9, 30]])
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        answer: torch.Tensor = model.eval()(input_ids=ids, pixel_values=pixels).logits
    return answer


@pytest.mark.parametrize("model_type", BUNNY_TARGETS)
def test_adapters_are_on_every_linear_layer_of_the_decoder_and_nowhere_else(
    model_type: str, tokenizer: TrainedTokenizer
) -> None:
    model = build_model(of_type(model_type), tokenizer, seed=1)
    before = logits(model)
    add_adapters(model, LORA, seed=1)
    assert torch.equal(logits(model), before)
    adapted = {name.split(".lora_A.")[0] for name, _ in model.named_parameters() if ".lora_A." in name}
    assert {name.rsplit(".", 1)[-1] for name in adapted} == BUNNY_TARGETS[model_type]
    assert all(name.startswith("model.language_model.layers.") for name in adapted)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    left = {n for n in linear if n not in adapted and ".lora_" not in n and not n.endswith(".base_layer")}
    assert not any(name.startswith("model.language_model.") for name in left)


@pytest.mark.parametrize("trainable", [("language_model",), ("language_model", "projector", "vision_tower")])
def test_the_decoder_trains_through_its_adapters_and_other_parts_whole(
    trainable: tuple, tokenizer: TrainedTokenizer
) -> None:
    model = build_model(tiny_model_config(), tokenizer, seed=1)
    freeze_all_but(model, [part for part in trainable if part != "language_model"])
    whole = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    add_adapters(model, LORA, seed=1)
    freeze_all_but(model, trainable)
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in trains if not is_adapter(name)} == whole
    assert {name for name, _ in model.named_parameters() if is_adapter(name)} <= trains


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # PEFT asks for it
def test_merged_and_alone_an_adapter_gives_the_logits_it_was_trained_to(
    tmp_path: Path, tokenizer: TrainedTokenizer
) -> None:
    config = tiny_model_config()
    model = build_model(config, tokenizer, seed=1)
    inputs = inputs_of(config, tokenizer)
    for name in ("base", "merged", "adapter"):
        (tmp_path / name).mkdir()
    save_model(model.state_dict(), model.config, inputs, tokenizer.json, tmp_path / "base")
    trainable: tuple[ModelPart, ...] = ("language_model", "projector", "vision_tower")
    add_adapters(model, LORA, seed=1)
    freeze_all_but(model, trainable)
    expected = logits(moved(model))

    state = model.state_dict()
    save_model(merged_state(state, LORA), model.config, inputs, tokenizer.json, tmp_path / "merged")
    save_adapter(state, model, trainable, "s3://bucket/base", tmp_path / "adapter")
    assert torch.allclose(logits(load_bundle(tmp_path / "merged")[0]), expected, atol=1e-5)

    merge_adapter(tmp_path / "adapter", tmp_path / "base", tmp_path / "again")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("merged", "again"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)

    base = LlavaForConditionalGeneration.from_pretrained(tmp_path / "base")
    assert not torch.allclose(logits(base), expected, atol=1e-2)
    assert torch.allclose(logits(PeftModel.from_pretrained(base, tmp_path / "adapter")), expected, atol=1e-5)


def test_an_adapter_says_what_it_belongs_to(tmp_path: Path, tokenizer: TrainedTokenizer) -> None:
    model = build_model(tiny_model_config(), tokenizer, seed=1)
    add_adapters(model, LORA, seed=1)
    save_adapter(model.state_dict(), model, ("language_model", "projector"), "s3://bucket/base", tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "s3://bucket/base"
    assert (settings["r"], settings["lora_alpha"], settings["lora_dropout"]) == (4, 8, 0.05)
    assert settings["modules_to_save"] == ["multi_modal_projector"]
    assert settings["target_modules"].startswith(r"model\.language_model\.")
    names = load_file(tmp_path / "adapter_model.safetensors")
    assert all(name.startswith(PEFT_PREFIX + "model.") for name in names)
    assert not any("vision_tower" in name or ".default." in name for name in names)


def test_every_rank_starts_from_the_same_adapters(tokenizer: TrainedTokenizer) -> None:
    states = []
    for noise in (1, 2):
        model = build_model(tiny_model_config(), tokenizer, seed=1)
        torch.manual_seed(noise)
        add_adapters(model, LORA, seed=7)
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
