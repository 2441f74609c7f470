"""Pretrained parts keep their numbers inside the model, whatever their family; what does not fit is a named error."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Dinov2Config, Dinov2Model, SiglipVisionConfig
from transformers import SiglipVisionModel as SiglipTower

from warren.config import ModelConfig
from warren.config.catalog import BACKBONES, Backbone
from warren.data.model_inputs import tokenizer_from_json
from warren.errors import ConfigError, ModelError
from warren.models import (
    TrainedTokenizer,
    build_model,
    folder_of,
    inputs_of,
    read_tokenizer,
    train_tokenizer,
    unfold_head,
)

SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "vocab_size": 512, "max_position_embeddings": 128,
}  # fmt: skip
TOWER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
TEXT = torch.tensor([[5, 9, 300, 7, 41, 8]])


def save_language_model(folder: Path, model_type: str, **changes: Any) -> Any:
    """Write a tiny language model with a tokenizer, and return it."""
    torch.manual_seed(3)
    fields = {**SIZES, "initializer_range": 0.2, **changes}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **fields), dtype=torch.float32).eval()
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(train_tokenizer(["some text to learn from"] * 3, 300).json)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}))
    return model


def save_tower(folder: Path, family: str = "siglip") -> Any:
    torch.manual_seed(4)
    kinds = {"siglip": (SiglipTower, SiglipVisionConfig), "dinov2": (Dinov2Model, Dinov2Config)}
    cls, config = kinds[family]
    tower = cls(config(**TOWER, **({"intermediate_size": 32} if family == "siglip" else {"mlp_ratio": 2}))).eval()
    tower.save_pretrained(folder)
    return tower


def config_of(language_model: dict[str, Any], tower: Path, family: str = "siglip") -> ModelConfig:
    values = {"vision_tower": {"family": family, "pretrained": str(tower)}, "language_model": language_model}
    return ModelConfig.model_validate_json(json.dumps(values))


def tokenizer_of(config: ModelConfig) -> TrainedTokenizer:
    source = config.language_model
    return read_tokenizer(folder_of(str(source.pretrained)), source.eos_token, source.pad_token, source.bos_token)[0]


def built(config: ModelConfig) -> Any:
    return build_model(config, tokenizer_of(config), seed=1).eval()


@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        ("qwen2", {"tie_word_embeddings": True}),
        ("phi", {}),
        ("gemma", {"head_dim": 8}),
        ("stablelm", {}),
        ("qwen3", {}),
    ],
)
def test_a_pretrained_language_model_keeps_its_logits(tmp_path: Path, model_type: str, changes: dict[str, Any]) -> None:
    alone = save_language_model(tmp_path / "lm", model_type, **changes)
    save_tower(tmp_path / "tower")
    model = built(config_of({"pretrained": str(tmp_path / "lm")}, tmp_path / "tower"))
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=TEXT).logits, alone(input_ids=TEXT).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", ["siglip", "dinov2"])
def test_a_pretrained_tower_keeps_its_features(tmp_path: Path, family: str) -> None:
    alone = save_tower(tmp_path / "tower", family)
    save_language_model(tmp_path / "lm", "llama")
    config = config_of({"pretrained": str(tmp_path / "lm")}, tmp_path / "tower", family)
    model = built(config)
    size = inputs_of(config, tokenizer_of(config)).image.size_px
    pixels = torch.randn(2, 3, size, size)
    with torch.no_grad():
        own = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2]
        torch.testing.assert_close(own, alone(pixels, output_hidden_states=True).hidden_states[-2])


def test_a_vocabulary_that_is_full_grows_by_the_image_token(tmp_path: Path) -> None:
    rows = train_tokenizer(["some text to learn from"] * 3, 300).vocab_size
    save_language_model(tmp_path / "lm", "llama", vocab_size=rows)
    tokenizer = json.loads((tmp_path / "lm" / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["content"] != "<image>"]
    (tmp_path / "lm" / "tokenizer.json").write_text(json.dumps(tokenizer))
    save_tower(tmp_path / "tower")
    config = config_of({"pretrained": str(tmp_path / "lm")}, tmp_path / "tower")
    model = built(config)
    assert tokenizer_of(config).image_token_id == model.config.image_token_index
    assert model.lm_head.weight.shape[0] == tokenizer_of(config).vocab_size


def test_a_bos_goes_in_front_where_the_recipe_names_one(tmp_path: Path) -> None:
    save_language_model(tmp_path / "lm", "llama")
    save_tower(tmp_path / "tower")
    plain = tokenizer_of(config_of({"pretrained": str(tmp_path / "lm")}, tmp_path / "tower"))
    assert plain.bos_token_id is None
    config = config_of({"pretrained": str(tmp_path / "lm"), "bos_token": "<|endoftext|>"}, tmp_path / "tower")
    tokenizer = tokenizer_of(config)
    assert inputs_of(config, tokenizer).tokens.bos_token_id == tokenizer.bos_token_id
    begin, *rest = tokenizer_from_json(tokenizer.json).encode("some text").ids
    assert begin == tokenizer.bos_token_id
    assert rest == tokenizer_from_json(plain.json).encode("some text").ids
    unknown = config_of({"pretrained": str(tmp_path / "lm"), "bos_token": "<bos>"}, tmp_path / "tower")
    with pytest.raises(ModelError, match="no token '<bos>', which is to be its bos"):
        tokenizer_of(unknown)


def test_a_minicpm_trains_as_a_granite_with_the_logits_of_its_scaled_llama(tmp_path: Path) -> None:
    factors = {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 8}
    plain = save_language_model(tmp_path / "lm", "llama")
    save_tower(tmp_path / "tower")
    config = json.loads((tmp_path / "lm" / "config.json").read_text())
    (tmp_path / "lm" / "config.json").write_text(json.dumps({**config, "model_type": "minicpm", **factors}))
    model = built(config_of({"pretrained": str(tmp_path / "lm")}, tmp_path / "tower"))
    with torch.no_grad():
        plain.model.embed_tokens.weight *= 12
        plain.lm_head.weight /= 32 / 8
        for layer in plain.model.layers:
            layer.self_attn.o_proj.weight *= 1.4 / 2**0.5
            layer.mlp.down_proj.weight *= 1.4 / 2**0.5
        expected = plain(input_ids=TEXT).logits
        torch.testing.assert_close(model(input_ids=TEXT).logits, expected, rtol=1e-5, atol=1e-5)
        unfold_head(model)
        torch.testing.assert_close(model.lm_head.weight, plain.lm_head.weight * 4)


def test_the_projector_starts_as_pytorch_makes_it_and_by_the_seed(tmp_path: Path) -> None:
    save_language_model(tmp_path / "lm", "llama")
    save_tower(tmp_path / "tower")
    config = config_of({"pretrained": str(tmp_path / "lm")}, tmp_path / "tower")
    one, same = built(config), built(config)
    weight = one.model.multi_modal_projector.linear_1.weight
    assert torch.equal(weight, same.model.multi_modal_projector.linear_1.weight)
    assert 0.9 < weight.abs().max() / TOWER["hidden_size"] ** -0.5 <= 1.0  # uniform within 1/sqrt(inputs)


def test_another_backbone_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_language_model(tmp_path / "lm", "qwen3")
    save_tower(tmp_path / "tower")
    entry = Backbone(str(tmp_path / "lm"), "qwen3", "<|endoftext|>", "<|pad|>", "brief")
    monkeypatch.setitem(BACKBONES, "house-rabbit", entry)
    config = config_of({"name": "house-rabbit"}, tmp_path / "tower")
    assert config.template == inputs_of(config, tokenizer_of(config)).template == "brief"
    assert built(config).config.text_config.model_type == "qwen3"


def test_what_does_not_fit_is_a_named_error(tmp_path: Path) -> None:
    save_language_model(tmp_path / "lm", "llama")
    save_tower(tmp_path / "tower")
    lm = {"pretrained": str(tmp_path / "lm"), "model_type": "llama"}
    with pytest.raises(ModelError, match=r"embed_tokens.weight is \[512, 32\], not \[600, 32\]"):
        built(config_of({**lm, "config": {**SIZES, "vocab_size": 600}}, tmp_path / "tower"))
    deeper = {**lm, "config": {**SIZES, "num_hidden_layers": 3}}
    with pytest.raises(ModelError, match=r"do not fit its configuration: model\.layers\.2\..* missing"):
        built(config_of(deeper, tmp_path / "tower"))
    with pytest.raises(ConfigError, match=r"family is 'dinov2', but .* is siglip_vision_model"):
        built(config_of({"pretrained": str(tmp_path / "lm")}, tmp_path / "tower", "dinov2"))
    (tmp_path / "lm" / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match="names no eos_token"):
        built(config_of({"pretrained": str(tmp_path / "lm")}, tmp_path / "tower"))
    shutil.rmtree(tmp_path / "lm")
    with pytest.raises(ConfigError, match="is no folder here, and the hub does not give it"):
        built(config_of({"pretrained": str(tmp_path / "lm")}, tmp_path / "tower"))


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    for part, near in (("language_model", "phi-2"), ("vision_tower", "siglip-so400m-384")):
        values: dict[str, Any] = {"vision_tower": {"family": "siglip"}, "language_model": {"pretrained": "x/y"}}
        values[part] = {"name": near + "2"}
        with pytest.raises(ValueError, match=f"did you mean '{near}'"):
            ModelConfig.model_validate_json(json.dumps(values))
