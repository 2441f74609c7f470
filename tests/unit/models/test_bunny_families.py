"""Every backbone family, and one that is only an entry in a table: imported logits equal transformers' own."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

from warren.data.images import ImageSpec
from warren.data.model_inputs import Inputs
from warren.data.template import TokenSpec
from warren.errors import ModelError
from warren.models import load, save_model, train_tokenizer
from warren.models.bunny import FAMILIES, Family, export_bunny, import_bunny
from warren.models.minicpm import check_minicpm
from warren.models.tokenizer import PAD

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {**SMALL, "image_size": 16, "patch_size": 8}
WINDOW = {"num_key_value_heads": 2, "sliding_window": 3, "rope_theta": 500.0}
MINICPM = {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 8}

# Bunny's model_type: what its config.json says of the decoder, and the same for transformers' own class.
DECODERS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "bunny-phi": ({"partial_rotary_factor": 0.5}, "phi", {"partial_rotary_factor": 0.5}),
    # A window of transformers 4.41 holds one token more than it says.
    "bunny-phi3": (WINDOW, "phi3", WINDOW | {"sliding_window": 4}),
    "bunny-llama": (
        {"num_key_value_heads": 2, "rope_theta": 500.0},
        "llama",
        {"num_key_value_heads": 2, "rope_theta": 500.0},
    ),
    "bunny-qwen2": ({"num_key_value_heads": 2}, "qwen2", {"num_key_value_heads": 2}),
    "bunny-stablelm": (
        {"norm_eps": 1e-3, "rope_pct": 0.5, "use_qkv_bias": True, "num_key_value_heads": 4},
        "stablelm",
        {"layer_norm_eps": 1e-3, "partial_rotary_factor": 0.5, "use_qkv_bias": True, "num_key_value_heads": 4},
    ),
    "bunny-minicpm": (
        {**MINICPM, "num_key_value_heads": 4, "rms_norm_eps": 1e-5},
        "granite",  # has MiniCPM's factors in its own forward
        {
            "embedding_multiplier": 12.0,
            "residual_multiplier": 1.4 / 2**0.5,
            "logits_scaling": 32 / 8,
            "attention_multiplier": 8**-0.5,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-5,
        },
    ),
    "bunny-qwen3": ({"head_dim": 8, "num_key_value_heads": 2}, "qwen3", {"head_dim": 8, "num_key_value_heads": 2}),
    "bunny-gemma": (
        {"head_dim": 8, "num_key_value_heads": 2},
        "gemma",
        {"head_dim": 8, "num_key_value_heads": 2},
    ),
}
TOKENIZER = train_tokenizer(["USER: what colour is it? ASSISTANT: red"] * 4, 300)


@pytest.fixture(autouse=True)
def new_families(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "bunny-qwen3", Family("qwen3"))  # all that a new backbone needs
    monkeypatch.setitem(FAMILIES, "bunny-gemma", Family("gemma"))
    for name, family in list(FAMILIES.items()):
        monkeypatch.setitem(FAMILIES, name, replace(family, end_of_answer=TOKENIZER.eos_token))


def native(model_type: str, fields: dict[str, Any]) -> LlavaForConditionalGeneration:
    torch.manual_seed(5)
    special = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 0}
    text = AutoConfig.for_model(model_type, **SMALL, **fields, **special, vocab_size=TOKENIZER.vocab_size)
    text.tie_word_embeddings = False
    vision = SiglipVisionConfig(**VISION)
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=TOKENIZER.image_token_id,
        image_seq_length=4,
        vision_feature_layer=-2,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config).eval()
    for parameter in model.parameters():  # norms and biases too, so that a lost one is seen
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def write_bunny(model: LlavaForConditionalGeneration, name: str, fields: dict[str, Any], folder: Path) -> None:
    folder.mkdir()
    (folder / "tokenizer.json").write_text(TOKENIZER.json)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": TOKENIZER.eos_token, "pad_token": PAD}))
    tower = folder / "tower"
    model.model.vision_tower.save_pretrained(tower)
    config = {**SMALL, **fields, "model_type": name, "vocab_size": TOKENIZER.vocab_size, "mm_vision_tower": "tower"}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {}
    for key, value in model.state_dict().items():
        for old, new in (
            ("model.language_model.", "model."),
            ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
            ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
        ):
            if key.startswith(old):
                tensors[new + key.removeprefix(old)] = value
    tensors["lm_head.weight"] = model.lm_head.weight.detach()
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "model.safetensors")


@pytest.mark.parametrize("name", DECODERS)
def test_imported_logits_are_those_of_the_decoder(name: str, tmp_path: Path) -> None:
    bunny_fields, model_type, native_fields = DECODERS[name]
    model = native(model_type, native_fields)
    write_bunny(model, name, bunny_fields, tmp_path / "bunny")
    import_bunny(tmp_path / "bunny", tmp_path / "m")
    imported, _ = load(tmp_path / "m")
    image = TOKENIZER.image_token_id
    ids = torch.tensor([[5, 9, *[image] * 4, 17, 30, 41, 7]])
    pixels = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        # LLaVA's head is its own: what Granite divides by is in Granite's causal model only.
        expected = model(input_ids=ids, pixel_values=pixels).logits / native_fields.get("logits_scaling", 1.0)
        found = imported(input_ids=ids, pixel_values=pixels).logits
    scale = float(expected.std())
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) < 1e-5 * max(1.0, scale)


@pytest.mark.parametrize("name", ["bunny-minicpm", "bunny-stablelm", "bunny-phi3"])
def test_what_was_folded_or_renamed_unfolds_on_the_way_back(name: str, tmp_path: Path) -> None:
    bunny_fields, model_type, native_fields = DECODERS[name]
    write_bunny(native(model_type, native_fields), name, bunny_fields, tmp_path / "bunny")
    import_bunny(tmp_path / "bunny", tmp_path / "m")
    export_bunny(tmp_path / "m", tmp_path / "back")
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("bunny", "back"))
    assert all(torch.allclose(after[key], before[key], rtol=1e-5, atol=1e-7) for key in before)
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert {key: config[key] for key in bunny_fields} == bunny_fields
    assert config["model_type"] == name


def rewritten(folder: Path, tensors: dict[str, torch.Tensor] | None = None, **config: Any) -> None:
    settings = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(settings))
    if tensors is not None:
        save_file(tensors, folder / "model.safetensors")


def test_a_head_that_is_not_there_is_the_embeddings_only_where_the_model_says_so(tmp_path: Path) -> None:
    for name, said, shared in (
        ("bunny-minicpm", {}, True),
        ("bunny-qwen2", {"tie_word_embeddings": True}, True),
        ("bunny-qwen2", {"tie_word_embeddings": False}, False),
        ("bunny-qwen2", {}, False),
    ):
        folder = tmp_path / f"{name}-{said}"
        bunny_fields, model_type, native_fields = DECODERS[name]
        write_bunny(native(model_type, native_fields), name, bunny_fields, folder)
        tensors = load_file(folder / "model.safetensors")
        del tensors["lm_head.weight"]
        rewritten(folder, tensors, **said)
        if shared:
            import_bunny(folder, tmp_path / f"{folder.name}-imported")
        else:
            with pytest.raises(ModelError, match=r"lacks language_model\.lm_head\.weight"):
                import_bunny(folder, tmp_path / "m")


def test_the_bias_of_phis_head_is_dropped_as_bunny_drops_it_and_no_others(tmp_path: Path) -> None:
    for name in ("bunny-phi", "bunny-qwen2"):
        bunny_fields, model_type, native_fields = DECODERS[name]
        write_bunny(native(model_type, native_fields), name, bunny_fields, tmp_path / name)
        tensors = load_file(tmp_path / name / "model.safetensors")
        rewritten(tmp_path / name, tensors | {"lm_head.bias": torch.zeros(TOKENIZER.vocab_size)})
    import_bunny(tmp_path / "bunny-phi", tmp_path / "m")
    with pytest.raises(ModelError, match=r"not of this model: language_model\.lm_head\.bias"):
        import_bunny(tmp_path / "bunny-qwen2", tmp_path / "n")


def test_a_granite_that_was_a_minicpm_is_exported_as_one(tmp_path: Path) -> None:
    _, model_type, native_fields = DECODERS["bunny-minicpm"]
    model = native(model_type, native_fields)
    spec = TokenSpec(TOKENIZER.image_token_id, 4, TOKENIZER.eos_token, TOKENIZER.pad_token_id)
    inputs = Inputs("bunny", spec, ImageSpec(16, (0.5,) * 3, (0.5,) * 3))
    (tmp_path / "trained").mkdir()
    save_model(model.state_dict(), model.config, inputs, TOKENIZER.json, tmp_path / "trained")
    export_bunny(tmp_path / "trained", tmp_path / "bunny")
    config = json.loads((tmp_path / "bunny" / "config.json").read_text())
    assert config["model_type"] == "bunny-minicpm"
    assert config["scale_emb"] == 12
    assert config["scale_depth"] == pytest.approx(1.4)
    ids, pixels = torch.tensor([[5, 9, *[TOKENIZER.image_token_id] * 4, 17, 30]]), torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        expected = model(input_ids=ids, pixel_values=pixels).logits
        found = load(tmp_path / "bunny")[0](input_ids=ids, pixel_values=pixels).logits
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.std()))


def test_a_minicpm_without_its_factors_is_an_error(tmp_path: Path) -> None:
    _, model_type, native_fields = DECODERS["bunny-minicpm"]
    write_bunny(native(model_type, native_fields), "bunny-minicpm", {"scale_emb": 12}, tmp_path / "bunny")
    with pytest.raises(ModelError, match="lacks scale_depth, dim_model_base"):
        import_bunny(tmp_path / "bunny", tmp_path / "m")


def test_a_minicpm_that_an_earlier_version_imported_as_a_llama_is_refused() -> None:
    source = {"model_type": "bunny-minicpm"}
    check_minicpm(LlavaConfig(text_config=AutoConfig.for_model("granite", **SMALL), bunny_config=source))
    with pytest.raises(ModelError, match=r"imported by an earlier version.*import the checkpoint again"):
        check_minicpm(LlavaConfig(text_config=AutoConfig.for_model("llama", **SMALL), bunny_config=source))
