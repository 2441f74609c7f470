"""Key/value cache of the running requests: one slot each, all of the same capacity, allocated once.

Rows are dense: decoding rows first, then the row being prefilled. So attention reads a slice.
"""

from typing import Any

import torch
from torch import Tensor

from warren.compat.transformers import DecoderCache


class SlotCache(DecoderCache):
    """The cache that transformers' attention layers use during one forward pass.

    Shape letters: S slots, H key/value heads, C capacity, T tokens of this pass, D head dimension.

    A forward pass has one dimension of tokens, whatever rows they belong to; `attention.py` knows what each of them
    attends to. Layers call `update` and nothing else.
    """

    def __init__(self, num_slots: int, capacity_tokens: int) -> None:
        self.num_slots = num_slots
        self.capacity_tokens = capacity_tokens
        self.keys: list[Tensor] = []  # per layer [S, H, C, D]
        self.values: list[Tensor] = []
        self._slots = self._positions = torch.zeros(0, dtype=torch.long)

    @property
    def num_bytes(self) -> int:
        """Bytes held; fixed after the first forward pass."""
        return sum(t.numel() * t.element_size() for t in (*self.keys, *self.values))

    def prepare(self, slots: Tensor, positions: Tensor) -> None:
        """Set where the next forward pass writes: slots and positions, int64 [T] each."""
        self._slots, self._positions = slots, positions

    def update(self, keys: Tensor, values: Tensor, layer_index: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store new keys and values [1, H, T, D]; return all keys and values of the layer, [S, H, C, D]."""
        while len(self.keys) <= layer_index:
            self._allocate(keys, values)
        for store, new in ((self.keys[layer_index], keys), (self.values[layer_index], values)):
            store[self._slots, :, self._positions] = new[0].transpose(0, 1)
        return self.keys[layer_index], self.values[layer_index]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one slot over another."""
        if source != target:
            for store in (*self.keys, *self.values):
                store[target, :, :length] = store[source, :, :length]

    def clear(self, slot: int) -> None:
        """Zero a slot. Only needed after values that are not finite, because 0 · NaN passes through the mask."""
        for store in (*self.keys, *self.values):
            store[slot].zero_()

    def _allocate(self, keys: Tensor, values: Tensor) -> None:
        # Zeros, not empty memory: masked positions must be finite.
        for stores, new in ((self.keys, keys), (self.values, values)):
            _, heads, _, dim = new.shape
            stores.append(new.new_zeros(self.num_slots, heads, self.capacity_tokens, dim))
