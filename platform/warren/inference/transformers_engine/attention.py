"""Attention over the slots: the tokens of one pass belong to many rows, and each reads its own row.

All else in a model works on single tokens. So a pass lays the next tokens of all running answers and a piece of a new
prompt side by side, in one dimension: every weight is read once for all of them, and nothing is padded.
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
"""What transformers knows it by. Outside of `reading` it is transformers' own, so `generate` works as ever."""


@dataclass(frozen=True)
class CacheSpan:
    """Tokens of one pass that lie side by side and are equally many for each of their rows.

    Attributes:
        tokens: Where they are in the pass.
        slots: Their rows.
        positions: int64 [rows, tokens per row], where in its row each token is; on the host.
        seen: bool [rows, 1, tokens per row, longest row], what each token may look at.
    """

    tokens: slice
    slots: slice
    positions: Tensor
    seen: Tensor

    @classmethod
    def of(cls, start: int, first_slot: int, positions: Tensor, device: torch.device) -> "CacheSpan":
        """Make the span of tokens from `start` on, at these positions of their rows."""
        rows, width = positions.shape
        # Everything at or before a position was written: one comparison is causality and padding at once.
        seen = torch.arange(int(positions.max()) + 1) <= positions[:, None, :, None]
        tokens, slots = slice(start, start + rows * width), slice(first_slot, first_slot + rows)
        return cls(tokens, slots, positions, seen.to(device))


_SPANS: ContextVar[Sequence[CacheSpan] | None] = ContextVar("spans", default=None)


@contextmanager
def reading(spans: Sequence[CacheSpan]) -> Iterator[None]:
    """Let the attention layers of passes within read these spans. Not an argument: some models would not hand it on."""
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
        key: [S, H, C, D], what `SlotCache.update` returned; so is `value`.
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

    Query heads that share a key/value head are laid behind each other like tokens: then none of the cache is repeated.
    """
    if span.positions.shape[1] == 1 and can_attend(query):
        lengths = span.positions[:, 0].numpy() + 1
        return attend_rows(query.transpose(0, 1), key[span.slots], value[span.slots], lengths, scaling)
    rows, _, width, length = span.seen.shape
    num_heads, num_kv_heads, dim = query.shape[0], key.shape[1], query.shape[-1]
    group = num_heads // num_kv_heads
    shared = query.reshape(num_kv_heads, group, rows, width, dim).permute(2, 0, 1, 3, 4)
    shared = shared.reshape(rows, num_kv_heads, group * width, dim)
    keys, values = (store[span.slots, :, :length] for store in (key, value))
    seen = span.seen if width == 1 else span.seen.repeat(1, 1, group, 1)
    attended = functional.scaled_dot_product_attention(shared, keys, values, attn_mask=seen, scale=scaling)
    attended = attended.view(rows, num_kv_heads, group, width, -1).permute(0, 3, 1, 2, 4)
    return attended.reshape(rows * width, num_heads, -1)


register_attention(NAME, attend)
