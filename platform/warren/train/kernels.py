"""The fastest kernels that the device has: they change speed and memory, and round as bf16 does anyway."""

from typing import Any

import torch
from transformers.utils import is_flash_attn_2_available

from warren.config import Resources


def choose_attention(model: Any, resources: Resources) -> str:
    """Let the language model use flash attention where its package and a bf16 GPU are there.

    SDPA must compute packed sequences with a mask, and so for every pair of tokens; flash attention computes only pairs
    within a sample. It has not been run by CI, which has no GPU.

    Returns:
        The language model's attention implementation.
    """
    fits = resources.precision == "bf16" and torch.cuda.is_available() and is_flash_attn_2_available()
    if fits:
        model.set_attn_implementation({"text_config": "flash_attention_2"})
    return str(model.config.text_config._attn_implementation)


def has_fused_optimizer() -> bool:
    """Whether AdamW runs as one kernel. On CPU torch's plain loop stays: another one rounds differently."""
    return torch.cuda.is_available()
