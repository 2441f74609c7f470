"""The catalog: published language models, vision towers and datasets by name. A new one is one short entry.

An entry fills in what a recipe leaves out. The expanded recipe holds every value, so it can be read without the
catalog. Sizes are those of each model's published config.json, so that a dry run knows them without a download; where
an entry has none, they are read from the weights' own folder. Values for Bunny's models are from its scripts and
`conversation.py`.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar


@dataclass(frozen=True)
class Backbone:
    """A language model that recipes may name.

    Attributes:
        pretrained: Where its weights are: a hub id.
        model_type: transformers' name of the decoder.
        eos_token: What ends every answer. Llama 3's tokenizer names another one; Bunny overrides it.
        pad_token: The tokenizer's own where it has one, else its unk, else the eos.
        template: The prompt template it is trained with.
        config: Sizes.
    """

    pretrained: str
    model_type: str
    eos_token: str
    pad_token: str
    template: str = "bunny"
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CatalogTower:
    """A vision tower that recipes may name."""

    family: str
    pretrained: str
    config: Mapping[str, Any] = field(default_factory=dict)


_END = "<|endoftext|>"
_LLAMA_END = "<|end_of_text|>"
_QWEN = "Qwen/Qwen"

BACKBONES: dict[str, Backbone] = {
    # Bunny's, by its `--model_type`
    "phi-1.5": Backbone("microsoft/phi-1_5", "phi", _END, _END, config={
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 32,
        "vocab_size": 51200, "max_position_embeddings": 2048, "partial_rotary_factor": 0.5}),
    "phi-2": Backbone("microsoft/phi-2", "phi", _END, _END, config={
        "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 32, "num_attention_heads": 32,
        "vocab_size": 51200, "max_position_embeddings": 2048, "partial_rotary_factor": 0.4}),
    "stablelm-2": Backbone("stabilityai/stablelm-2-1_6b", "stablelm", _END, _END, config={
        "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": 100352, "max_position_embeddings": 4096,
        "partial_rotary_factor": 0.25, "use_qkv_bias": True}),
    "qwen1.5-1.8b": Backbone(f"{_QWEN}1.5-1.8B", "qwen2", _END, _END, config={
        "hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 24, "num_attention_heads": 16,
        "num_key_value_heads": 16, "vocab_size": 151936, "max_position_embeddings": 32768, "rope_theta": 1000000.0}),
    "minicpm": Backbone("openbmb/MiniCPM-2B-history", "minicpm", "</s>", "<unk>", "minicpm", config={
        "hidden_size": 2304, "intermediate_size": 5760, "num_hidden_layers": 40, "num_attention_heads": 36,
        "num_key_value_heads": 36, "vocab_size": 122753, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True, "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256}),
    # Its config.json says 2047; Bunny's transformers (4.41) let a position see one more.
    "phi-3": Backbone("microsoft/Phi-3-mini-4k-instruct", "phi3", _END, _END, "phi3", config={
        "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": 32064, "max_position_embeddings": 4096, "sliding_window": 2048}),
    "llama3-8b": Backbone("meta-llama/Meta-Llama-3-8B-Instruct", "llama", _LLAMA_END, _LLAMA_END, "llama", config={
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0}),
    # Others; their sizes are read from their own config.json
    "llama3.2-1b": Backbone("meta-llama/Llama-3.2-1B", "llama", _LLAMA_END, _LLAMA_END, "llama"),
    "llama3.2-3b": Backbone("meta-llama/Llama-3.2-3B", "llama", _LLAMA_END, _LLAMA_END, "llama"),
    "qwen2-1.5b": Backbone(f"{_QWEN}2-1.5B", "qwen2", _END, _END),
    "qwen2.5-1.5b": Backbone(f"{_QWEN}2.5-1.5B", "qwen2", _END, _END),
    "qwen2.5-3b": Backbone(f"{_QWEN}2.5-3B", "qwen2", _END, _END),
    "qwen3-1.7b": Backbone(f"{_QWEN}3-1.7B", "qwen3", _END, _END),
    "smollm2-135m": Backbone("HuggingFaceTB/SmolLM2-135M-Instruct", "llama", "<|im_end|>", "<|im_end|>"),
    "smollm2-1.7b": Backbone("HuggingFaceTB/SmolLM2-1.7B-Instruct", "llama", "<|im_end|>", "<|im_end|>"),
    "gemma-2b": Backbone("google/gemma-2b", "gemma", "<eos>", "<pad>"),
}  # fmt: skip

_SO400M = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
    "image_size": 384, "patch_size": 14,
}  # fmt: skip

TOWERS: dict[str, CatalogTower] = {
    "siglip-so400m-384": CatalogTower("siglip", "google/siglip-so400m-patch14-384", _SO400M),
    "siglip2-so400m-384": CatalogTower("siglip", "google/siglip2-so400m-patch14-384", _SO400M),
    "clip-l-336": CatalogTower("clip", "openai/clip-vit-large-patch14-336", {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "image_size": 336, "patch_size": 14, "projection_dim": 768}),
    "eva02-clip-l-336": CatalogTower("eva-clip", "QuanSun/EVA-CLIP/EVA02_CLIP_L_336_psz14_s6B.pt", {
        "hidden_size": 1024, "intermediate_size": 2730, "num_hidden_layers": 24, "num_attention_heads": 16,
        "image_size": 336, "patch_size": 14}),
    "dinov2-small": CatalogTower("dinov2", "facebook/dinov2-small", {
        "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "image_size": 518, "patch_size": 14}),
}  # fmt: skip

TEMPLATES = ("bunny", "phi3", "minicpm", "llama", "plain", "brief", "default", "native")
"""The prompt templates (`warren.data.template`); `native` is the tokenizer's own chat template."""

DATASET_SAMPLES = {
    "bunny-pretrain-laion-2m": 2_000_000,
    "bunny-695k": 695_000,
    "bunny-llava-1.4m": 1_360_000,
    "bunny-allava-1.3m": 1_300_000,
    "bunny-llava-allava-2m": 2_000_000,
}
"""Published (rounded) sizes of Bunny's datasets, for a dry run before they are ingested."""

Entry = TypeVar("Entry")


def entry(kind: str, table: Mapping[str, Entry], name: str) -> Entry:
    """Return a table's entry.

    Raises:
        ValueError: There is none of that name; the message has the nearest.
    """
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"valid: {', '.join(sorted(table))}"
        raise ValueError(f"no {kind} named {name!r}; {hint}")
    return table[name]


def check_template(name: str) -> str:
    """Return the name of a prompt template.

    Raises:
        ValueError: There is none of that name; the message has all.
    """
    if name not in TEMPLATES:
        raise ValueError(f"no template named {name!r}; valid: {', '.join(sorted(TEMPLATES))}")
    return name
