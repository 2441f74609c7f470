"""Contracts with transformers: what `warren.compat.transformers` and `transformers_chat` take for granted."""

import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    CLIPVisionConfig,
    Dinov2Config,
    LlamaConfig,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaModel,
    SiglipVisionConfig,
)

from library_contracts import changed
from warren.compat import transformers as compat
from warren.compat.transformers import (
    LLAVA_DISK_NAMES,
    TOWERS_WITHOUT_VISION_MODEL,
    LlavaWith,
    attention_of,
    handed_to_layers,
    image_features,
    keep_attention_uncompiled,
    plain_attention,
    register_attention,
    repeat_heads,
)
from warren.compat.transformers_chat import render_chat_template

NAME = "warren_contract"
SIZES: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TOWERS: dict[str, Any] = {
    "clip_vision_model": CLIPVisionConfig(**SIZES, image_size=4, patch_size=2),
    "siglip_vision_model": SiglipVisionConfig(**SIZES, image_size=4, patch_size=2, vision_use_head=False),
    "dinov2": Dinov2Config(**{**SIZES, "mlp_ratio": 1}, image_size=4, patch_size=2),
}


def decoder() -> LlamaModel:
    torch.manual_seed(0)
    return LlamaModel(LlamaConfig(**SIZES, num_key_value_heads=1, vocab_size=8)).eval()


def llava_config(tower: str = "clip_vision_model") -> LlavaConfig:
    text = LlamaConfig(**SIZES, num_key_value_heads=1, vocab_size=8)
    return LlavaConfig(vision_config=TOWERS[tower], text_config=text, image_token_index=7, image_seq_length=4)


@pytest.fixture
def masks() -> Iterator[list[Tensor | None]]:
    """The masks that an attention function of Warren's is called with, layer by layer."""
    seen: list[Tensor | None] = []

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
    ) -> Any:
        seen.append(mask)
        return plain_attention(module, query, key, value, None, **{**options, "is_causal": True})

    register_attention(NAME, attend)
    yield seen
    for interface in (AttentionInterface, AttentionMaskInterface):
        interface._global_mapping.pop(NAME, None)


def test_a_registered_attention_is_used_with_masks_as_for_sdpa(masks: list[Tensor | None]) -> None:
    model = decoder()
    assert attention_of(model.config) == "sdpa", changed(attention_of, f"it is {attention_of(model.config)} by default")
    model.set_attn_implementation(NAME)
    assert attention_of(model.config) == NAME, changed(
        attention_of, f"it is {attention_of(model.config)} after a choice"
    )
    padded = torch.tensor([[1, 1, 1, 0]])
    model(inputs_embeds=torch.randn(1, 4, 16), attention_mask=padded)
    assert len(masks) == 2, changed(register_attention, f"it was called {len(masks)} times by 2 layers")
    for mask in masks:
        assert mask is not None, changed(register_attention, "it is called without a mask")
        assert mask.shape[-2:] == (4, 4), changed(register_attention, f"its mask has shape {mask.shape}")


def test_a_mask_of_four_dimensions_reaches_every_layer_as_it_is(masks: list[Tensor | None]) -> None:
    model = decoder()
    model.set_attn_implementation(NAME)
    lengths = handed_to_layers(torch.tensor([1, 3], dtype=torch.int32))
    positions = torch.tensor([[0, 0, 1, 2]])
    model(inputs_embeds=torch.randn(1, 4, 16), attention_mask=lengths, position_ids=positions)
    for mask in masks:
        assert mask is not None, changed(handed_to_layers, "it does not reach the layers")
        assert torch.equal(mask, lengths), changed(handed_to_layers, f"layers see {mask}")
        assert mask.dtype == torch.int32, changed(handed_to_layers, f"layers see {mask.dtype}")


def test_plain_attention_is_transformers_own() -> None:
    own = AttentionInterface()["sdpa"]
    layer = nn.Module()
    query, key, value = torch.randn(1, 4, 5, 8), torch.randn(1, 4, 5, 8), torch.randn(1, 4, 5, 8)
    expected, _ = own(layer, query, key, value, None, is_causal=True)
    actual, weights = plain_attention(layer, query, key, value, None, is_causal=True)
    assert torch.equal(actual, expected), changed(plain_attention, "it is not what `sdpa` is any more")
    assert weights is None
    assert actual.shape == (1, 5, 4, 8), changed(plain_attention, f"its result has shape {actual.shape}")


def test_heads_are_repeated_side_by_side() -> None:
    states = torch.randn(1, 2, 3, 4)
    assert torch.equal(repeat_heads(states, 3), states.repeat_interleave(3, dim=1)), changed(repeat_heads, "differs")


def test_flash_attention_is_not_chosen_without_its_package() -> None:
    assert compat.has_flash_attention() is False, changed(compat.has_flash_attention, "it is found without a GPU")


def test_an_uncompiled_attention_takes_the_place_of_the_other(masks: list[Tensor | None]) -> None:
    before = AttentionInterface()[NAME]
    keep_attention_uncompiled(NAME, plain_attention)
    assert AttentionInterface()[NAME] is not before, changed(keep_attention_uncompiled, "the first one stays")
    assert AttentionMaskInterface()[NAME] is not None
    assert masks == []


class OneLayerCache(compat.DecoderCache):
    """Has nothing but `update`."""

    def __init__(self) -> None:
        self.layers: list[int] = []

    def update(self, keys: Tensor, values: Tensor, layer_index: int, /, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.layers.append(layer_index)
        return keys, values


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "phi", "phi3", "stablelm", "gemma", "granite"])
def test_a_cache_needs_no_more_than_update(family: str) -> None:
    sizes = {**SIZES, "num_key_value_heads": 1, "vocab_size": 8, "head_dim": 8, "pad_token_id": 0}
    config = transformers.AutoConfig.for_model(family, **sizes)
    model = transformers.AutoModel.from_config(config).eval()
    cache = OneLayerCache()
    try:
        model(
            inputs_embeds=torch.randn(1, 3, 16),
            attention_mask=handed_to_layers(torch.ones(1, dtype=torch.bool)),
            position_ids=torch.arange(3)[None],
            past_key_values=cache,
            use_cache=True,
        )
    except (AttributeError, TypeError) as error:
        pytest.fail(changed(compat.DecoderCache, f"{family} asks for more: {error}"))
    assert cache.layers == [0, 1], changed(compat.DecoderCache, f"{family} calls update for layers {cache.layers}")


class Inner(LlavaModel):
    """Another class."""


class Outer(LlavaWith):
    inner_class = Inner


def test_llavas_constructor_is_still_the_one_that_is_repeated() -> None:
    expected = [
        "super().__init__(config)",
        "self.model = LlavaModel(config)",
        "self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)",
        "self.post_init()",
    ]
    lines = [line.strip() for line in inspect.getsource(LlavaForConditionalGeneration.__init__).splitlines()[1:]]
    assert lines == expected, changed(LlavaWith, f"LLaVA's constructor is {lines} now")
    torch.manual_seed(1)
    plain = LlavaForConditionalGeneration(llava_config())
    torch.manual_seed(1)
    other = Outer(llava_config())
    assert type(other.model) is Inner
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name]), changed(LlavaWith, f"{name} begins with other weights")


def test_images_are_encoded_one_by_one() -> None:
    model = LlavaForConditionalGeneration(llava_config()).eval()
    with torch.no_grad():
        features = image_features(model, torch.randn(3, 3, 4, 4))
    shapes = [tuple(each.shape) for each in features]
    assert shapes == [(4, 16)] * 3, changed(image_features, f"features of 3 images have shapes {shapes}")


@pytest.mark.parametrize("tower", TOWERS)
def test_models_load_by_the_published_names(tower: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    model = LlavaForConditionalGeneration(llava_config(tower))
    model.save_pretrained(tmp_path)
    written = {}
    for name, weight in model.state_dict().items():
        disk = next(new + name.removeprefix(old) for old, new in LLAVA_DISK_NAMES if name.startswith(old))
        if tower in TOWERS_WITHOUT_VISION_MODEL and name.startswith("model.vision_tower."):
            disk = name.removeprefix("model.")
        written[disk] = weight.contiguous()
    save_file(written, tmp_path / "model.safetensors", metadata={"format": "pt"})
    _, report = LlavaForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    tie = compat.read_under_names  # its docstring leads to the names
    assert not report["missing_keys"], changed(
        tie, f"LLAVA_DISK_NAMES: {sorted(report['missing_keys'])[:3]} are missing"
    )
    assert not report["unexpected_keys"], changed(tie, f"LLAVA_DISK_NAMES: unknown {report['unexpected_keys']}")


def test_renamings_of_ones_own_are_applied(tmp_path: Path) -> None:
    class OtherConfig(LlavaConfig):
        model_type = "warren_contract_llava"

    class Other(LlavaForConditionalGeneration):
        config_class = OtherConfig

    compat.read_under_names(OtherConfig.model_type, {r"^head\.": "lm_head."})
    model = Other(OtherConfig(**llava_config().to_dict()))
    model.save_pretrained(tmp_path)
    tensors = model.state_dict()
    tensors["head.weight"] = tensors.pop("lm_head.weight")
    save_file({name: weight.contiguous() for name, weight in tensors.items()}, tmp_path / "model.safetensors")
    assert "head.weight" in load_file(tmp_path / "model.safetensors")
    _, report = Other.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"], changed(compat.read_under_names, f"{report['missing_keys']} are missing")


def test_chat_templates_are_rendered_without_torch() -> None:
    code = (
        "import sys; from warren.compat.transformers_chat import render_chat_template as render\n"
        "source = '{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}{{ date_string }}"
        "{% if add_generation_prompt %}!{% endif %}'\n"
        "print(render(source, [{'role': 'user', 'content': 'a'}], True, bos_token='<s>', date='26 Jul'))\n"
        "print('torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stdout.split("\n")[:2] == ["<s>user: a;26 Jul!", "False"], changed(
        render_chat_template, f"it prints {ended.stdout!r}, and {ended.stderr[-500:]!r}"
    )
