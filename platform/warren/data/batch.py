"""A global batch, cut into parts for ranks and micro-batches. The loss does not depend on the cut."""

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from warren.data.images import write_pixels
from warren.data.model_inputs import EncodedSample
from warren.data.packing import Cut, Sequences, lay_out
from warren.data.template import IGNORED

__all__ = ["BatchPart", "Cut", "MicroBatch", "Quarantined", "cut_global_batch", "pack_parts", "unpack_parts"]


@dataclass(frozen=True)
class Quarantined:
    """A sample that could not be used; it keeps its place in the order with weight zero.

    Attributes:
        num_cut_tokens: Its supervised tokens, if it is unusable because it is too long.
    """

    key: str
    source: str
    reason: str
    num_cut_tokens: int = 0


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
        num_cut_samples: Samples of the whole global batch that lost supervised tokens to `max_length_tokens`.
        num_cut_tokens: The supervised tokens that they lost.
        keys: Keys of this share's samples.
        quarantined: Samples of the whole global batch that could not be used, listed in every share.
    """

    step: int
    epoch: int
    rank: int
    num_supervised_tokens: int
    num_samples: int
    num_tokens: int
    num_slots: int
    num_cut_samples: int
    num_cut_tokens: int
    micro_batches: tuple[MicroBatch, ...]
    keys: tuple[str, ...] = ()
    quarantined: tuple[Quarantined, ...] = field(default=())

    @property
    def padding_fraction(self) -> float:
        """Share of the global batch's slots that hold no token."""
        return 1.0 - self.num_tokens / max(1, self.num_slots)

    def _header(self) -> str:
        counts = {name: getattr(self, name) for name in _COUNTS}
        bad = [astuple(q) for q in self.quarantined]
        shapes = [{name: getattr(micro, name).shape for name in _TENSORS} for micro in self.micro_batches]
        return json.dumps({**counts, "shapes": shapes, "keys": self.keys, "quarantined": bad})

    def _tokens(self) -> bytes:
        return b"".join(getattr(micro, name).tobytes() for micro in self.micro_batches for name in _TOKEN_TENSORS)


_COUNTS = (
    *("step", "epoch", "rank", "num_supervised_tokens", "num_samples", "num_tokens", "num_slots"),
    *("num_cut_samples", "num_cut_tokens"),
)
_TOKEN_TENSORS = ("input_ids", "labels", "lengths", "sequences")
_TENSORS = (*_TOKEN_TENSORS, "pixels")


def pack_parts(parts: Sequence[BatchPart]) -> pa.Table:
    """Pack one rank's shares of consecutive steps into one Arrow row; the pixels of a single share are not copied.

    Returns:
        `headers`: JSON with the counts and the tensors' shapes. `tokens`: the int32 tensors of a share, one after the
        other. `pixels`: the images of a share, likewise.
    """
    headers = pa.array([[part._header() for part in parts]], pa.list_(pa.string()))
    tokens = pa.array([[part._tokens() for part in parts]], pa.list_(pa.large_binary()))
    pixels = [_joined([micro.pixels for micro in part.micro_batches]) for part in parts]
    lists = pa.ListArray.from_arrays(pa.array([0, len(parts)], pa.int32()), _binaries(pixels))
    return pa.table({"headers": headers, "tokens": tokens, "pixels": lists})


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return arrays as one flat array, without a copy if they are all parts of one array, as those of a share are."""
    arrays = [array for array in arrays if array.size]
    if not arrays:
        return np.zeros(0, np.uint8)
    base, starts = arrays[0].base, [array.ctypes.data for array in arrays]
    is_whole = base is not None and base.nbytes == sum(array.nbytes for array in arrays)
    if is_whole and starts == sorted(starts) and all(array.base is base for array in arrays):
        return base.reshape(-1)  # type: ignore[union-attr]
    return np.concatenate([array.reshape(-1) for array in arrays])


def _binaries(arrays: Sequence[np.ndarray]) -> pa.Array:
    """Return arrays of bytes as Arrow binaries; a single one is not copied."""
    offsets = np.concatenate([[0], np.cumsum([array.nbytes for array in arrays])]).astype(np.int64)
    data = arrays[0] if len(arrays) == 1 else np.concatenate([*arrays, np.zeros(0, np.uint8)])
    return pa.Array.from_buffers(
        pa.large_binary(), len(arrays), [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(data))]
    )


def unpack_parts(table: pa.Table) -> Iterator[BatchPart]:
    """Unpack what `pack_parts` packed, one share at a time; the tensors are read-only views of the table's memory."""
    for row in range(table.num_rows):
        columns = (table[name][row] for name in ("headers", "tokens", "pixels"))
        for header, tokens, pixels in zip(*columns, strict=True):
            yield _unpack(json.loads(header.as_py()), tokens.as_buffer(), pixels.as_buffer())


def _unpack(facts: dict[str, Any], tokens: pa.Buffer, pixels: pa.Buffer) -> BatchPart:
    at = {np.int32: 0, np.uint8: 0}

    def take(data: pa.Buffer, kind: Any, shape: list[int]) -> np.ndarray:
        count = math.prod(shape)
        array = np.frombuffer(data, kind, count, at[kind]) if count else np.zeros(0, kind)
        at[kind] += array.nbytes
        return array.reshape(shape)

    micro_batches = tuple(
        MicroBatch(
            **{name: take(tokens, np.int32, shapes[name]) for name in _TOKEN_TENSORS},
            pixels=take(pixels, np.uint8, shapes["pixels"]),
        )
        for shapes in facts["shapes"]
    )
    return BatchPart(
        **{name: facts[name] for name in _COUNTS},
        micro_batches=micro_batches,
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
    """Cut a global batch so that ranks and micro-batches have similar numbers of tokens."""
    layout = lay_out([len(sample.input_ids) for sample in samples], cut)

    def share(mine: list[Sequences]) -> tuple[MicroBatch, ...]:
        groups = [[[samples[i] for i in sequence] for sequence in group] for group in mine]
        counts = [sum(len(s.images) for sequence in group for s in sequence) for group in groups]
        # One array for all images of a share, so that Arrow can take it without a copy.
        pixels = np.empty((sum(counts), 3, image_size_px, image_size_px), dtype=np.uint8)
        ends = itertools.accumulate(counts)
        return tuple(
            _collate(group, pad_token_id, pixels[end - count : end])
            for group, count, end in zip(groups, counts, ends, strict=True)
        )

    shares = [share(mine) for mine in layout]
    supervised = sum(sample.num_supervised_tokens for sample in samples)
    num_slots = sum(micro_batch.input_ids.size for share in shares for micro_batch in share)
    cut_tokens = [*(good.num_cut_tokens for good in samples), *(bad.num_cut_tokens for bad in quarantined)]
    return [
        BatchPart(
            step=step,
            epoch=epoch,
            rank=rank,
            num_supervised_tokens=supervised,
            num_samples=len(samples) + len(quarantined),
            num_tokens=sum(len(sample.input_ids) for sample in samples),
            num_slots=num_slots,
            num_cut_samples=sum(lost > 0 for lost in cut_tokens),
            num_cut_tokens=sum(cut_tokens),
            micro_batches=share,
            keys=tuple(samples[i].key for group in layout[rank] for sequence in group for i in sequence),
            quarantined=tuple(quarantined),
        )
        for rank, share in enumerate(shares)
    ]


def _collate(sequences: Sequence[Sequence[EncodedSample]], pad_token_id: int, pixels: np.ndarray) -> MicroBatch:
    """Lay sequences out as tensors; their images are written into `pixels`."""
    length = max((sum(len(sample.input_ids) for sample in sequence) for sequence in sequences), default=0)
    input_ids = np.full((len(sequences), length), pad_token_id, dtype=np.int32)
    labels = np.full((len(sequences), length), IGNORED, dtype=np.int32)
    samples, numbers = [], []
    for number, sequence in enumerate(sequences):
        start = 0
        for sample in sequence:
            end = start + len(sample.input_ids)
            input_ids[number, start:end] = sample.input_ids
            labels[number, start + 1 : end] = sample.labels[1:]  # no token predicts the first
            start = end
            samples.append(sample)
            numbers.append(number)
    write_pixels([image for sample in samples for image in sample.images], pixels)
    return MicroBatch(
        input_ids=input_ids,
        labels=labels,
        lengths=np.array([len(sample.input_ids) for sample in samples], dtype=np.int32),
        sequences=np.array(numbers, dtype=np.int32),
        pixels=pixels,
    )
