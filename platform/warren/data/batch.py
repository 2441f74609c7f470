"""A global batch, cut into parts for the ranks and micro-batches; no loss depends on how."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors.numpy import load, save

from warren.data.inputs import EncodedSample
from warren.data.packing import Cut, Sequences, lay_out
from warren.data.template import IGNORED

__all__ = ["BatchPart", "Cut", "MicroBatch", "Quarantined", "cut_global_batch", "pack_parts", "unpack_parts"]


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
        input_ids: int32 (sequences, length), right-padded.
        labels: int32 (sequences, length), -100 where no loss is taken, as at every sample's first token.
        lengths: int32 (samples,), tokens of each sample, in the order of the tokens.
        sequences: int32 (samples,), ascending; the sequence that each sample is in.
        pixels: uint8 (images, 3, height, width), in the order of the image tokens.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    lengths: np.ndarray
    sequences: np.ndarray
    pixels: np.ndarray

    @property
    def is_packed(self) -> bool:
        """Whether a sequence holds more than one sample."""
        return len(self.lengths) > len(np.unique(self.sequences))


@dataclass(frozen=True)
class BatchPart:
    """One rank's share of one global batch.

    Attributes:
        step: The optimizer step it belongs to.
        rank: Which share: 0 … world size - 1.
        num_supervised_tokens: Of the whole global batch: the denominator of the loss on every rank.
        num_samples: Of the whole global batch, quarantined ones included.
        num_tokens: Of the whole global batch.
        num_slots: Places for tokens in the whole global batch as it is cut; what is not a token is padding.
        keys: Samples of this share.
        quarantined: Samples of the whole global batch that could not be used, listed in every share.
    """

    step: int
    epoch: int
    rank: int
    num_supervised_tokens: int
    num_samples: int
    num_tokens: int
    num_slots: int
    micro_batches: tuple[MicroBatch, ...]
    keys: tuple[str, ...] = ()
    quarantined: tuple[Quarantined, ...] = field(default=())

    @property
    def padding_fraction(self) -> float:
        """Share of the global batch's slots that hold no token."""
        return 1.0 - self.num_tokens / max(1, self.num_slots)

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


_COUNTS = ("step", "epoch", "rank", "num_supervised_tokens", "num_samples", "num_tokens", "num_slots")
_TENSORS = ("input_ids", "labels", "lengths", "sequences", "pixels")


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


def cut_global_batch(
    step: int,
    epoch: int,
    samples: Sequence[EncodedSample],
    quarantined: Sequence[Quarantined],
    cut: Cut,
    pad_token_id: int,
    image_size_px: int,
) -> list[BatchPart]:
    """Deal a global batch out so that ranks and micro-batches carry like amounts of tokens."""
    layout = lay_out([len(sample.input_ids) for sample in samples], cut)

    def collate(group: Sequences) -> MicroBatch:
        return _collate([[samples[i] for i in sequence] for sequence in group], pad_token_id, image_size_px)

    shares = [tuple(collate(group) for group in mine) for mine in layout]
    supervised = sum(sample.num_supervised_tokens for sample in samples)
    num_slots = sum(micro_batch.input_ids.size for share in shares for micro_batch in share)
    return [
        BatchPart(
            step=step,
            epoch=epoch,
            rank=rank,
            num_supervised_tokens=supervised,
            num_samples=len(samples) + len(quarantined),
            num_tokens=sum(len(sample.input_ids) for sample in samples),
            num_slots=num_slots,
            micro_batches=share,
            keys=tuple(samples[i].key for group in layout[rank] for sequence in group for i in sequence),
            quarantined=tuple(quarantined),
        )
        for rank, share in enumerate(shares)
    ]


def _collate(sequences: Sequence[Sequence[EncodedSample]], pad_token_id: int, image_size_px: int) -> MicroBatch:
    length = max((sum(len(sample.input_ids) for sample in sequence) for sequence in sequences), default=0)
    input_ids = np.full((len(sequences), length), pad_token_id, dtype=np.int32)
    labels = np.full((len(sequences), length), IGNORED, dtype=np.int32)
    samples, numbers = [], []
    for number, sequence in enumerate(sequences):
        start = 0
        for sample in sequence:
            end = start + len(sample.input_ids)
            input_ids[number, start:end] = sample.input_ids
            labels[number, start + 1 : end] = sample.labels[1:]  # nothing predicts the first
            start = end
            samples.append(sample)
            numbers.append(number)
    pixels = [sample.pixels for sample in samples]
    empty = np.zeros((0, 3, image_size_px, image_size_px), dtype=np.uint8)
    return MicroBatch(
        input_ids=input_ids,
        labels=labels,
        lengths=np.array([len(sample.input_ids) for sample in samples], dtype=np.int32),
        sequences=np.array(numbers, dtype=np.int32),
        pixels=np.concatenate(pixels) if pixels else empty,
    )
