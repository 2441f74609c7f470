"""The fastest kernels that the device has: they change speed and memory, and round as bf16 does anyway."""

from typing import Any

import torch

from warren.compat.transformers import attention_of, has_flash_attention, keep_attention_uncompiled
from warren.config import Resources
from warren.train import packed_attention


def choose_attention(model: Any, resources: Resources) -> str:
    """Let the language model compute pairs of tokens within a sample only.

    A bf16 GPU does so by flash attention where its package is installed, which CI, without a GPU, has not run; a CPU by
    one call a sample, unless a window limits what a token sees. Other GPUs keep SDPA with a mask:
    whether so many small kernels pay there was not measured.

    Returns:
        The language model's attention implementation.
    """
    text = model.config.text_config
    if not torch.cuda.is_available():
        if getattr(text, "sliding_window", None) is None:
            model.set_attn_implementation({"text_config": packed_attention.NAME})
    elif resources.precision == "bf16" and has_flash_attention():
        model.set_attn_implementation({"text_config": "flash_attention_2"})
    return attention_of(text)


def compile_layers(model: Any) -> None:
    """Fuse what stands between a decoder layer's products, by torch.compile; all layers share one compilation.

    The vision tower is left alone: on a CPU it gained nothing. On a GPU this was not run.
    """
    keep_attention_uncompiled(packed_attention.NAME, packed_attention.attend)
    for layer in model.model.language_model.layers:
        layer.compile(dynamic=True)


def has_fused_optimizer() -> bool:
    """Whether AdamW runs as one kernel. On CPU torch's plain loop stays: another one rounds differently."""
    return torch.cuda.is_available()
