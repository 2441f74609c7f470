"""The fastest kernels of a device. They change speed and memory; results differ within bf16's rounding."""

from typing import Any

import torch

from warren.compat.transformers import attention_of, has_flash_attention, keep_attention_uncompiled
from warren.config import Resources
from warren.train import packed_attention


def choose_attention(model: Any, resources: Resources) -> str:
    """Choose an attention kernel that computes only pairs of tokens of the same sample, where there is one.

    In bf16 on a GPU that is flash attention, if its package is installed; CI has no GPU and has not run it. On a CPU it
    is one call for each sample, unless a window limits the attention. Other GPUs keep SDPA with a mask: whether many
    small kernels are faster there was not measured.

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
    """Compile the decoder's layers with torch.compile; all layers share one compilation.

    The vision tower is not compiled: on a CPU that gained nothing. None of this was run on a GPU.
    """
    keep_attention_uncompiled(packed_attention.NAME, packed_attention.attend)
    for layer in model.model.language_model.layers:
        layer.compile(dynamic=True)


def has_fused_optimizer() -> bool:
    """Return whether AdamW runs as one kernel. On a CPU it does not, because the fused kernel rounds differently."""
    return torch.cuda.is_available()
