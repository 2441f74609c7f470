"""Attention over the slots: the tokens of one forward pass belong to many rows, and each attends to its own row.

All other layers work on single tokens. So a forward pass lays the next tokens of all running answers and a chunk of a
new prompt side by side, in one dimension: every weight is read once for all of them, and nothing is padded.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from warren.compat.transformers import plain_attention, register_attention
from warren.inference.transformers_engine.decode_kernel import attend_rows, can_attend

NAME = "warren_slots"
"""The attention implementation's name in transformers. Outside of `reading` it is SDPA, so `generate` still works."""


@dataclass(frozen=True)
class CacheSpan:
    """Adjacent tokens of one forward pass that belong to adjacent slots, the same number to each.

    Attributes:
        tokens: Their places in the forward pass.
        slots: The slots they belong to.
        positions: int64 [rows, tokens per row], each token's position in its row; on the host.
        mask: bool [rows, 1, tokens per row, longest row], the positions that each token attends to.
    """

    tokens: slice
    slots: slice
    positions: Tensor
    mask: Tensor

    @classmethod
    def of(cls, start: int, first_slot: int, positions: Tensor, device: torch.device) -> "CacheSpan":
        """Make the span that begins at token `start` and has these positions."""
        rows, width = positions.shape
        # Everything up to a position is in the cache, so one comparison masks the future and the padding.
        mask = torch.arange(int(positions.max()) + 1) <= positions[:, None, :, None]
        tokens, slots = slice(start, start + rows * width), slice(first_slot, first_slot + rows)
        return cls(tokens, slots, positions, mask.to(device))


_SPANS: ContextVar[Sequence[CacheSpan] | None] = ContextVar("spans", default=None)


@contextmanager
def reading(spans: Sequence[CacheSpan]) -> Iterator[None]:
    """Make attention layers read these spans. No argument, because some models do not pass it to their layers."""
    token = _SPANS.set(spans)
    try:
        yield
    finally:
        _SPANS.reset(token)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' attention functions do; within `reading`, each span to its own slots.

    Shape letters: Q query heads, T tokens, S slots, H key/value heads, C capacity, D head dimension.

    Args:
        module: The attention layer.
        query: [1, Q, T, D].
        key: [S, H, C, D], as `SlotCache.update` returns it; so is `value`.
        value: See `key`.
        attention_mask: Not used within `reading`.
        scaling: Of the scores.
        options: What transformers passes besides.

    Returns:
        [1, T, Q, D], and no weights.
    """
    if (spans := _SPANS.get()) is None:
        return plain_attention(module, query, key, value, attention_mask, scaling=scaling, **options)
    parts = [_attend(query[0, :, span.tokens], key, value, span, scaling) for span in spans]
    return torch.cat(parts)[None], None


def _attend(query: Tensor, key: Tensor, value: Tensor, span: CacheSpan, scaling: float | None) -> Tensor:
    """Return [tokens, Q, D] for the queries [Q, tokens, D] of one span.

    Query heads that share a key/value head are stacked like tokens, so that no key or value is copied for them.
    """
    if span.positions.shape[1] == 1 and can_attend(query):
        lengths = span.positions[:, 0].numpy() + 1
        return attend_rows(query.transpose(0, 1), key[span.slots], value[span.slots], lengths, scaling)
    rows, _, width, length = span.mask.shape
    num_heads, num_kv_heads, dim = query.shape[0], key.shape[1], query.shape[-1]
    group = num_heads // num_kv_heads
    shared = query.reshape(num_kv_heads, group, rows, width, dim).permute(2, 0, 1, 3, 4)
    shared = shared.reshape(rows, num_kv_heads, group * width, dim)
    keys, values = (store[span.slots, :, :length] for store in (key, value))
    mask = span.mask if width == 1 else span.mask.repeat(1, 1, group, 1)
    output = functional.scaled_dot_product_attention(shared, keys, values, attn_mask=mask, scale=scaling)
    output = output.view(rows, num_kv_heads, group, width, -1).permute(0, 3, 1, 2, 4)
    return output.reshape(rows * width, num_heads, -1)


register_attention(NAME, attend)
