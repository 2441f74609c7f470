"""The step `duplicates`: keep the first of all samples with equal bytes, equal captions or nearly equal pixels.

One task for each piece stores a 128-bit digest of every selected sample, sorted into buckets. One task for each bucket
finds the digests that occur again. Perceptual hashes may differ in `max_distance` bits: their bits are cut into
`max_distance + 1` parts, one of which must be equal, and they are sorted into buckets by each part. Samples that any
bucket links are one group.
"""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from warren.config.curate import DuplicatesStep
from warren.curate.array_files import ArrayFile, Arrays
from warren.curate.embedding_duplicates import components
from warren.curate.filters import caption_of
from warren.curate.perceptual_hash import linked, perceptual_hash
from warren.curate.row_mask import RowSet, StoredRows
from warren.curate.sample_pieces import PieceTask, SamplePiece
from warren.curate.tasks import Runner, Workspace, finish
from warren.data.images import MAX_PIXELS, decode_image
from warren.storage import Location

_ROW_BYTES = 160  # memory of one sample in a bucket's task
_COLUMNS = {"image": ["images"], "pixels": ["images"], "caption": ["turns"], "pair": ["images", "turns"]}


def keep_first(
    run: Runner,
    work: Workspace,
    step: DuplicatesStep,
    pieces: list[SamplePiece],
    selected: Location,
    num_rows: int,
    memory: int,
) -> RowSet:
    """Return the selected samples without those that repeat an earlier one.

    Args:
        selected: The stored set of selected samples.
        num_rows: Rows of all datasets.
        memory: Bytes that a task may use.
    """
    kept = StoredRows(selected).load()
    buckets = max(1, -(-len(kept) * _ROW_BYTES // memory))
    digests = finish(run, work / "digests", [_Digests(piece, step, selected, buckets) for piece in pieces])
    locations = tuple(file.location for file in digests)
    parts = step.max_distance + 1
    tasks = [_Repeated(part, n, locations, step) for part in range(parts) for n in range(buckets)]
    repeated = finish(run, work / "repeated", tasks)
    left, right = (np.concatenate([file.read(name) for file in repeated]) for name in ("first", "other"))
    rows = np.unique(np.concatenate([left, right]))
    # Only rows with a duplicate take part, so the labels are as small as the duplicates are few.
    label = components(len(rows), np.searchsorted(rows, left), np.searchsorted(rows, right))
    kept.remove(rows[label != np.arange(len(rows))])
    return kept


def digest_of(step: DuplicatesStep) -> Callable[[dict[str, Any]], bytes]:
    """Return the function that computes the digest of a stored row: 16 bytes, equal for duplicates."""
    if step.of == "pixels":
        return _hashes
    of_images, of_text = step.of in ("image", "pair"), step.of in ("caption", "pair")

    def digest(row: dict[str, Any]) -> bytes:
        hasher = blake2b(digest_size=16)
        for image in row["images"] if of_images else ():
            hasher.update(blake2b(image["bytes"]).digest())
        if of_text:
            # White space is no difference between captions. The zero byte keeps images and text apart.
            hasher.update(b"\0" + " ".join(caption_of(row).split()).encode("utf-8", "replace"))
        return hasher.digest()

    return digest


def _hashes(row: dict[str, Any]) -> bytes:
    """Return the perceptual hash of the first image, and a digest of the others' hashes."""
    hashes = [perceptual_hash(decode_image(image["bytes"], MAX_PIXELS)) for image in row["images"]]
    rest = blake2b(repr(hashes[1:]).encode(), digest_size=8).digest() if len(hashes) > 1 else bytes(8)
    return hashes[0].to_bytes(8, "little") + rest if hashes else b""


@dataclass(frozen=True)
class _Digests(PieceTask):
    """Digests of a piece, sorted into buckets by each part of their bits."""

    step: DuplicatesStep
    selected: Location
    buckets: int

    def compute(self) -> Arrays:
        digest = digest_of(self.step)
        rows: list[int] = []
        data: list[bytes] = []
        for row, record in self.piece.records(_COLUMNS[self.step.of], self.selected):
            if self.step.of in ("image", "pixels") and not record["images"]:
                continue  # samples without an image are not duplicates of each other
            rows.append(row)
            data.append(digest(record))
        digests = np.frombuffer(b"".join(data), "<u8").reshape(-1, 2)
        made: dict[str, np.ndarray] = {"digest": digests, "row": np.array(rows, np.int64)}
        for part in range(self.step.max_distance + 1):
            # By each part, because two hashes that differ in few bits are equal in at least one part.
            bucket = _part(digests[:, 0], part, self.step.max_distance + 1) % np.uint64(self.buckets)
            order = np.argsort(bucket, kind="stable")
            made[f"order-{part}"] = order
            made[f"starts-{part}"] = np.searchsorted(bucket[order], np.arange(self.buckets + 1))
        return made


def _part(hashes: np.ndarray, part: int, parts: int) -> np.ndarray:
    """Return one part of each hash's bits, multiplied by a constant so that buckets fill evenly (Fibonacci hashing)."""
    start, stop = 64 * part // parts, 64 * (part + 1) // parts
    value = hashes >> np.uint64(start) & np.uint64((1 << stop - start) - 1)
    return value * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)


@dataclass(frozen=True)
class _Repeated:
    """Pairs of duplicates in one bucket."""

    part: int
    bucket: int
    digests: tuple[Location, ...]
    step: DuplicatesStep

    @property
    def name(self) -> str:
        return f"{self.part}-{self.bucket:06d}"

    def compute(self) -> Arrays:
        digests, rows = [], []
        for location in self.digests:
            file = ArrayFile(location)
            start, stop = file.read(f"starts-{self.part}", self.bucket, self.bucket + 2).tolist()
            places = file.read(f"order-{self.part}", start, stop)
            digests.append(file.read("digest")[places])
            rows.append(file.read("row")[places])
        digest, row = np.concatenate(digests), np.concatenate(rows)
        order = np.argsort(row, kind="stable")
        digest, row = digest[order], row[order]
        if self.step.max_distance:
            left, right = linked(digest[:, 0].copy(), self.step.max_distance)
            # The second half is the digest of the other images of the sample: those must be equal.
            same = digest[left, 1] == digest[right, 1]
            return {"first": row[left[same]], "other": row[right[same]]}
        by_digest = np.lexsort((row, digest[:, 1], digest[:, 0]))
        again = np.flatnonzero((digest[by_digest[1:]] == digest[by_digest[:-1]]).all(axis=1))
        return {"first": row[by_digest[again]], "other": row[by_digest[again + 1]]}
