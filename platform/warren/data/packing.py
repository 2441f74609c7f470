"""How the samples of a global batch are laid out in sequences, micro-batches and ranks: by length alone.

Without packing a sequence holds one sample. With packing it holds as many as fit, and as few micro-batches are used as
possible. Either way all ranks get the same number of micro-batches, and similar numbers of tokens.
"""

import heapq
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

Sequences = list[list[int]]
"""The sequences of one micro-batch, each a list of sample numbers."""
BatchLayout = list[list[Sequences]]
"""Per rank, its micro-batches."""

_FOLD = 4
"""A packed sequence is at most this many times as long as the longest sample: longer ones pack no better, and SDPA
computes attention for every pair of a sequence's tokens, also of different samples."""


@dataclass(frozen=True)
class Packing:
    """Room of a micro-batch: `num_sequences` sequences of `sequence_tokens` tokens, or more shorter ones."""

    num_sequences: int
    sequence_tokens: int


@dataclass(frozen=True)
class Cut:
    """How a global batch is cut. It changes speed and memory, but not the gradient.

    Attributes:
        num_micro_batches: Micro-batches of each rank; with packing, the largest number.
        packing: None puts one sample into each sequence.
    """

    world_size: int
    num_micro_batches: int
    packing: Packing | None = None

    @classmethod
    def of(
        cls, global_batch_size: int, world_size: int, micro_batch_size: int, packed_tokens: int | None = None
    ) -> "Cut":
        """Use the fewest micro-batches of at most `micro_batch_size` sequences.

        Args:
            packed_tokens: Pack samples into sequences of at most this length; None: do not pack.
        """
        packing = None if packed_tokens is None else Packing(micro_batch_size, packed_tokens)
        return cls(world_size, -(-global_batch_size // (world_size * micro_batch_size)), packing)


def lay_out(lengths: Sequence[int], cut: Cut) -> BatchLayout:
    """Lay samples of the given lengths out; the same lengths give the same layout."""
    if cut.packing is None or not lengths:
        return _one_a_sequence(lengths, cut)
    return _packed(lengths, cut.world_size, cut.packing)


def _one_a_sequence(lengths: Sequence[int], cut: Cut) -> BatchLayout:
    """Assign samples, longest first, each to the lightest micro-batch that has room (ties to the first)."""
    num_bins = cut.world_size * cut.num_micro_batches
    capacity = -(-len(lengths) // num_bins)
    bins: list[Sequences] = [[] for _ in range(num_bins)]
    loads = [0] * num_bins
    for index in _longest_first(lengths):
        lightest = min((b for b in range(num_bins) if len(bins[b]) < capacity), key=lambda b: (loads[b], b))
        bins[lightest].append([index])
        loads[lightest] += lengths[index]
    per_rank = cut.num_micro_batches
    return [bins[rank * per_rank : (rank + 1) * per_rank] for rank in range(cut.world_size)]


def _packed(lengths: Sequence[int], world_size: int, packing: Packing) -> BatchLayout:
    longest = max(lengths)
    capacity = max(longest, min(packing.sequence_tokens, _FOLD * longest))
    room = max(1, packing.num_sequences * packing.sequence_tokens // capacity)
    tight = _best_fit(lengths, capacity)
    num_micro_batches = -(-len(tight) // (world_size * room))
    num_sequences = -(-len(tight) // (world_size * num_micro_batches))
    total = world_size * num_micro_batches * num_sequences
    sequences = _balanced(lengths, total, capacity) or tight + [[]] * (total - len(tight))
    sequences.sort(key=lambda sequence: -sum(lengths[i] for i in sequence))  # similar lengths need little padding
    layout: BatchLayout = [[] for _ in range(world_size)]
    for number in range(num_micro_batches):
        together = sequences[number * world_size * num_sequences :][: world_size * num_sequences]
        for rank in range(world_size):
            layout[rank].append(together[rank::world_size])
    return layout


def _best_fit(lengths: Sequence[int], capacity: int) -> Sequences:
    """Put each sample, longest first, where it leaves the least room (best-fit decreasing)."""
    sequences: Sequences = []
    room: list[tuple[int, int]] = []  # ascending (free tokens, sequence)
    for index in _longest_first(lengths):
        place = bisect_left(room, (lengths[index], -1))
        free, sequence = room.pop(place) if place < len(room) else (capacity, len(sequences))
        if sequence == len(sequences):
            sequences.append([])
        sequences[sequence].append(index)
        insort(room, (free - lengths[index], sequence))
    return sequences


def _balanced(lengths: Sequence[int], num_sequences: int, capacity: int) -> Sequences | None:
    """Put each sample, longest first, into the lightest of so many sequences; None if they do not fit that way."""
    sequences: Sequences = [[] for _ in range(num_sequences)]
    loads = [(0, number) for number in range(num_sequences)]
    for index in _longest_first(lengths):
        load, lightest = loads[0]
        if load + lengths[index] > capacity:
            return None
        sequences[lightest].append(index)
        heapq.heapreplace(loads, (load + lengths[index], lightest))
    return sequences


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
