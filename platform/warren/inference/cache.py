"""Keys and values of the running requests: one slot each, all of the same capacity, allocated once.

Rows are kept dense: decoding rows first, then the one being prefilled. So attention reads a slice.
"""

from typing import Any

import torch
from torch import Tensor


class SlotCache:
    """What transformers' attention layers see as their cache during one forward pass.

    Shape letters: S slots, B rows of this pass, H key/value heads, C capacity, L longest row of this pass,
    T new positions per row, D head dimension.

    The mask and position ids are given to the model explicitly: `update` is all a layer calls. Each slot has
    one position more than its capacity: padding is written there and never read.
    """

    def __init__(self, num_slots: int, capacity_tokens: int) -> None:
        self.num_slots = num_slots
        self.capacity_tokens = capacity_tokens
        self.keys: list[Tensor] = []  # per layer [S, H, C + 1, D]
        self.values: list[Tensor] = []
        self._rows = slice(0, 0)
        self._row_index = torch.zeros(0, 1, dtype=torch.long)
        self._write_at = torch.zeros(0, 1, dtype=torch.long)
        self._read_length = 0

    @property
    def num_bytes(self) -> int:
        """Bytes held; fixed after the first forward pass."""
        return sum(t.numel() * t.element_size() for t in (*self.keys, *self.values))

    def prepare(self, first_row: int, write_at: Tensor, read_length: int) -> None:
        """Say where the next forward pass reads and writes.

        Args:
            first_row: Its rows are `first_row … first_row + B`.
            write_at: int64 [B, T], position of every new token; `capacity_tokens` for padding.
            read_length: L, the longest row after writing.
        """
        stop = first_row + write_at.shape[0]
        self._rows = slice(first_row, stop)
        self._row_index = torch.arange(first_row, stop, device=write_at.device)[:, None]
        self._write_at = write_at
        self._read_length = read_length

    def update(self, keys: Tensor, values: Tensor, layer_index: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store new keys and values [B, H, T, D]; return all of the rows' [B, H, L, D]."""
        while len(self.keys) <= layer_index:
            self._allocate(keys, values)
        result = []
        for store, new in ((self.keys[layer_index], keys), (self.values[layer_index], values)):
            store[self._row_index, :, self._write_at] = new.transpose(1, 2)
            result.append(store[self._rows, :, : self._read_length])
        return result[0], result[1]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one slot over another."""
        if source != target:
            for store in (*self.keys, *self.values):
                store[target, :, :length] = store[source, :, :length]

    def clear(self, slot: int) -> None:
        """Zero a slot. Needed only after non-finite values: masked positions still meet them as 0 · NaN."""
        for store in (*self.keys, *self.values):
            store[slot].zero_()

    def _allocate(self, keys: Tensor, values: Tensor) -> None:
        # Zeros, not empty memory: masked positions must be finite.
        for stores, new in ((self.keys, keys), (self.values, values)):
            _, heads, _, dim = new.shape
            stores.append(new.new_zeros(self.num_slots, heads, self.capacity_tokens + 1, dim))
