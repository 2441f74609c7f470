"""Attention over packed samples that computes no pairs of tokens from different samples.

With a mask, SDPA computes every pair of a sequence, also those of different samples and of padding, and discards most.
Flash attention's kernel for samples of different lengths does not, but needs a GPU. Here each sample is a call of its
own.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from warren.compat.transformers import handed_to_layers, plain_attention, register_attention, repeat_heads

NAME = "warren_samples"
"""Its name in transformers' registry. With any mask but one of `lengths_mask` it is transformers' own SDPA."""


def lengths_mask(lengths: tuple[int, ...]) -> Tensor:
    """Return the samples' lengths as a mask of 4 dimensions, which transformers passes to every layer unchanged."""
    return handed_to_layers(torch.tensor(lengths, dtype=torch.int32))


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' attention functions do, each sample to itself.

    Shape letters: Q query heads, H key/value heads, T tokens, D head dimension.

    Args:
        module: The attention layer.
        query: [1, Q, T, D].
        key: [1, H, T, D]; so is `value`.
        value: See `key`.
        attention_mask: int32 [1, 1, 1, samples], lengths that add up to T.
        scaling: Of the scores.
        dropout: Of the weights.
        options: What transformers passes besides.

    Returns:
        [1, T, Q, D], and no weights.
    """
    if attention_mask is None or attention_mask.dtype != torch.int32:
        return plain_attention(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **options)
    group = query.shape[1] // key.shape[1]
    lengths = attention_mask.flatten().tolist()
    heads: tuple[Any, ...] = (query, repeat_heads(key, group), repeat_heads(value, group))
    samples = zip(*(states.split(lengths, dim=2) for states in heads), strict=True)
    outputs = [
        functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scaling)
        for q, k, v in samples
    ]
    return torch.cat([each.transpose(1, 2) for each in outputs], dim=1), None


register_attention(NAME, attend)
