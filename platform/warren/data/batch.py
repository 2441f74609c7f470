"""A global batch, cut into equal parts for the ranks and micro-batches that no loss depends on."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors.numpy import load, save

from warren.data.inputs import EncodedSample
from warren.data.template import IGNORED


@dataclass(frozen=True)
class Quarantined:
    """A sample that could not be used; it keeps its place in the order with weight zero."""

    key: str
    source: str
    reason: str


@dataclass(frozen=True)
class MicroBatch:
    """What one forward of one rank sees; may be empty (0 samples).

    Attributes:
        input_ids: int32 (samples, length), right-padded.
        labels: int32 (samples, length), -100 where no loss is taken.
        lengths: int32 (samples,), tokens before padding.
        pixels: uint8 (images, 3, height, width), in the order of the image tokens.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    lengths: np.ndarray
    pixels: np.ndarray


@dataclass(frozen=True)
class BatchPart:
    """One rank's share of one global batch.

    Attributes:
        step: The optimizer step it belongs to.
        rank: Which share: 0 … world size - 1.
        num_supervised_tokens: Of the whole global batch: the denominator of the loss on every rank.
        num_samples: Of the whole global batch, quarantined ones included.
        keys: Samples of this share.
        quarantined: Samples of the whole global batch that could not be used, listed in every share.
    """

    step: int
    epoch: int
    rank: int
    num_supervised_tokens: int
    num_samples: int
    micro_batches: tuple[MicroBatch, ...]
    keys: tuple[str, ...] = ()
    quarantined: tuple[Quarantined, ...] = field(default=())

    def _header(self) -> str:
        counts = {name: getattr(self, name) for name in _COUNTS}
        bad = [[q.key, q.source, q.reason] for q in self.quarantined]
        return json.dumps({**counts, "micro": len(self.micro_batches), "keys": self.keys, "quarantined": bad})

    def _tensors(self) -> bytes:
        tensors = {
            f"{i}.{name}": np.ascontiguousarray(getattr(micro, name))
            for i, micro in enumerate(self.micro_batches)
            for name in _TENSORS
        }
        data: bytes = save(tensors)
        return data


_COUNTS = ("step", "epoch", "rank", "num_supervised_tokens", "num_samples")
_TENSORS = ("input_ids", "labels", "lengths", "pixels")


def pack_parts(parts: Sequence[BatchPart]) -> pa.Table:
    """Pack one rank's shares of consecutive steps into one Arrow row: JSON headers and safetensors buffers."""
    headers = pa.array([[part._header() for part in parts]], pa.list_(pa.string()))
    tensors = pa.array([[part._tensors() for part in parts]], pa.list_(pa.large_binary()))
    return pa.table({"headers": headers, "tensors": tensors})


def unpack_parts(table: pa.Table) -> Iterator[BatchPart]:
    """Unpack what `pack_parts` packed, one share at a time."""
    for row in range(table.num_rows):
        for header, buffer in zip(table["headers"][row], table["tensors"][row], strict=True):
            facts: dict[str, Any] = json.loads(header.as_py())
            tensors = load(buffer.as_py())
            yield BatchPart(
                **{name: facts[name] for name in _COUNTS},
                micro_batches=tuple(
                    MicroBatch(**{name: tensors[f"{i}.{name}"] for name in _TENSORS}) for i in range(facts["micro"])
                ),
                keys=tuple(facts["keys"]),
                quarantined=tuple(Quarantined(*entry) for entry in facts["quarantined"]),
            )


@dataclass(frozen=True)
class Cut:
    """How a global batch is cut: a matter of speed and memory, never of the gradient."""

    world_size: int
    num_micro_batches: int

    @classmethod
    def of(cls, global_batch_size: int, world_size: int, micro_batch_size: int) -> "Cut":
        """Use the fewest micro-batches of at most `micro_batch_size` samples."""
        return cls(world_size, -(-global_batch_size // (world_size * micro_batch_size)))


def cut_global_batch(
    step: int,
    epoch: int,
    samples: Sequence[EncodedSample],
    quarantined: Sequence[Quarantined],
    cut: Cut,
    pad_token_id: int,
    image_size_px: int,
) -> list[BatchPart]:
    """Deal a global batch out so that ranks and micro-batches carry like amounts of tokens.

    Longest first, each to the lightest micro-batch (ties to the first): the same samples give the same cut.
    """
    num_bins = cut.world_size * cut.num_micro_batches
    capacity = -(-len(samples) // num_bins)
    bins: list[list[EncodedSample]] = [[] for _ in range(num_bins)]
    loads = [0] * num_bins
    by_length = sorted(range(len(samples)), key=lambda i: (-len(samples[i].input_ids), i))
    for index in by_length:
        lightest = min((b for b in range(num_bins) if len(bins[b]) < capacity), key=lambda b: (loads[b], b))
        bins[lightest].append(samples[index])
        loads[lightest] += len(samples[index].input_ids)
    supervised = sum(sample.num_supervised_tokens for sample in samples)
    parts = []
    for rank in range(cut.world_size):
        mine = bins[rank * cut.num_micro_batches : (rank + 1) * cut.num_micro_batches]
        parts.append(
            BatchPart(
                step=step,
                epoch=epoch,
                rank=rank,
                num_supervised_tokens=supervised,
                num_samples=len(samples) + len(quarantined),
                micro_batches=tuple(_collate(group, pad_token_id, image_size_px) for group in mine),
                keys=tuple(sample.key for group in mine for sample in group),
                quarantined=tuple(quarantined),
            )
        )
    return parts


def _collate(samples: Sequence[EncodedSample], pad_token_id: int, image_size_px: int) -> MicroBatch:
    length = max((len(sample.input_ids) for sample in samples), default=0)
    input_ids = np.full((len(samples), length), pad_token_id, dtype=np.int32)
    labels = np.full((len(samples), length), IGNORED, dtype=np.int32)
    for row, sample in enumerate(samples):
        input_ids[row, : len(sample.input_ids)] = sample.input_ids
        labels[row, : len(sample.labels)] = sample.labels
    pixels = [sample.pixels for sample in samples]
    empty = np.zeros((0, 3, image_size_px, image_size_px), dtype=np.uint8)
    return MicroBatch(
        input_ids=input_ids,
        labels=labels,
        lengths=np.array([len(sample.input_ids) for sample in samples], dtype=np.int32),
        pixels=np.concatenate(pixels) if pixels else empty,
    )
