"""Images of evaluation sets in training data: found by perceptual hash, confirmed by comparing pixels.

A copy may be encoded again, scaled, grey, mirrored or cropped. The first three hardly change a perceptual hash. For the
others every evaluation image is hashed as it is, mirrored, and in crops that are spread over it. A training image whose
hash is near one of these is a candidate; it is a match if its pixels correlate with that crop, or with one close to it.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from warren.config.curate import DecontaminateStep
from warren.curate.arrays import ArrayFile, Arrays
from warren.curate.image_matching import (
    COARSE_PX,
    COARSE_SCALE,
    SCALES,
    THUMBNAIL_PX,
    WHOLE,
    best_fit,
    boxes,
    compared_pixels,
    hashes_and_pixels,
    thumbnail,
)
from warren.curate.perceptual import distance
from warren.curate.report import ImagePair
from warren.curate.row_mask import RowSet, StoredRows
from warren.curate.samples import (
    ROWS_PER_IMAGE_PIECE,
    Parent,
    PieceTask,
    SamplePiece,
    key_of,
    sample_pieces,
    stored_shards,
)
from warren.curate.tasks import Runner, Workspace, finish
from warren.data.images import MAX_PIXELS, decode_image
from warren.storage import Location

_SEARCHED = 8  # evaluation images for one training image; where all look alike, hundreds have a hash that is near

_PAIRS_SHOWN = 8  # in a report


@dataclass(frozen=True)
class EvaluationImages:
    """An evaluation set and the files of its hashes."""

    reference: str
    digest: str
    pieces: tuple[SamplePiece, ...]
    hashes: tuple[Location, ...]

    @property
    def num_samples(self) -> int:
        """Number of its samples."""
        return self.pieces[-1].stop


def prepare(run: Runner, work: Workspace, parents: Sequence[Parent]) -> list[EvaluationImages]:
    """Hash evaluation sets."""
    made = []
    for parent in parents:
        pieces = sample_pieces(stored_shards([parent]), ROWS_PER_IMAGE_PIECE)
        files = finish(run, work / f"evaluation-{parent.reference}", [_Hash(piece) for piece in pieces])
        locations = tuple(file.location for file in files)
        made.append(EvaluationImages(parent.reference, parent.manifest.digest, tuple(pieces), locations))
    return made


def find(
    run: Runner,
    work: Workspace,
    step: DecontaminateStep,
    evaluations: Sequence[EvaluationImages],
    pieces: Sequence[SamplePiece],
    selected: Location,
) -> tuple[list[ArrayFile], RowSet]:
    """Look for evaluation images among the selected samples.

    Returns:
        The matches (`row`, `evaluation`, `evaluation_row`, `distance`, `correlation`), and the samples without a match.
    """
    tasks = [_Find(piece, tuple(evaluations), selected, step.max_distance, step.min_correlation) for piece in pieces]
    files = finish(run, work / "found", tasks)
    clean = StoredRows(selected).load()
    for file in files:
        clean.remove(file.read("row"))
    return files, clean


def certificate(
    step: DecontaminateStep,
    evaluations: Sequence[EvaluationImages],
    pieces: Sequence[SamplePiece],
    files: Sequence[ArrayFile],
    checked: int,
) -> dict[str, Any]:
    """Return the content of a dataset's `contamination.json`: the evaluation sets, the method and the matches."""
    matches = []
    for file in files:
        columns = [
            file.read(name).tolist() for name in ("row", "evaluation", "evaluation_row", "distance", "correlation")
        ]
        for row, number, other, bits, correlation in zip(*columns, strict=True):
            matches.append(
                {
                    "key": key_of(pieces, row),
                    "evaluation": evaluations[number].reference,
                    "evaluation_key": key_of(evaluations[number].pieces, other),
                    "distance": bits,
                    "correlation": round(correlation, 4),
                }
            )
    return {
        "samples_checked": checked,
        "evaluations": [
            {"dataset": each.reference, "digest": each.digest, "samples": each.num_samples} for each in evaluations
        ],
        "method": {
            "hash": "pHash, 64 bits",
            "max_distance": step.max_distance,
            "min_correlation": step.min_correlation,
            "crops": {str(side): along * along for side, along in SCALES.items()},
            "mirrored": True,
        },
        "samples_matched": len({match["key"] for match in matches}),
        "evaluation_images_matched": len({(match["evaluation"], match["evaluation_key"]) for match in matches}),
        "removed": step.remove,
        "matches": matches,
    }


def image_pairs(evaluations: Sequence[EvaluationImages], files: Sequence[ArrayFile]) -> tuple[ImagePair, ...]:
    """Return the first matches, for a report."""
    pairs: list[ImagePair] = []
    for file in files:
        if len(pairs) >= _PAIRS_SHOWN:
            break
        columns = [file.read(name, 0, _PAIRS_SHOWN).tolist() for name in ("row", "evaluation", "evaluation_row")]
        pairs += [
            ImagePair(row, evaluations[number].pieces, other) for row, number, other in zip(*columns, strict=True)
        ]
    return tuple(pairs[:_PAIRS_SHOWN])


@dataclass(frozen=True)
class _Hash(PieceTask):
    """Hashes of evaluation images and their crops, and thumbnails to compare with."""

    def compute(self) -> Arrays:
        every = list(boxes())
        hashes, coarse, rows, thumbnails = [], [], [], []
        seen: set[bytes] = set()  # many questions are asked about one image
        for row, encoded in _images(self.piece, None):
            digest = hashlib.sha256(encoded).digest()
            if digest in seen:
                continue
            seen.add(digest)
            small = thumbnail(decode_image(encoded, MAX_PIXELS).convert("L"))
            rows.append(row)
            thumbnails.append(small)
            for side in (small, small[:, ::-1]):
                of_crops, pixels = hashes_and_pixels(side, every)
                hashes.append(of_crops)
                coarse.append(np.clip(np.rint(pixels * COARSE_SCALE), -127, 127))
        shape = (len(rows), THUMBNAIL_PX, THUMBNAIL_PX)
        return {
            "row": np.array(rows, np.int64),
            "hash": np.array(hashes, np.uint64).reshape(len(rows), 2, len(every)),
            "coarse": np.array(coarse, np.int8).reshape(len(rows), 2, len(every), COARSE_PX**2),
            "thumbnail": np.array(thumbnails, np.uint8).reshape(shape),
        }


@dataclass(frozen=True)
class _Find(PieceTask):
    evaluations: tuple[EvaluationImages, ...]
    selected: Location
    max_distance: int
    min_correlation: float

    def compute(self) -> Arrays:
        matches: list[tuple[int, int, int, int, float]] = []
        for row, encoded in _images(self.piece, self.selected):
            grey = decode_image(encoded, MAX_PIXELS).convert("L")
            matches += [(row, *match) for match in self._matches(grey)]
        columns: list[Sequence[Any]] = list(zip(*matches, strict=True)) if matches else [()] * 5
        names = {"row": np.int64, "evaluation": np.int64, "evaluation_row": np.int64, "distance": np.int64}
        made = {name: np.array(column, kind) for (name, kind), column in zip(names.items(), columns, strict=False)}
        return {**made, "correlation": np.array(columns[4], np.float64)}

    def _matches(self, grey: Image.Image) -> Iterator[tuple[int, int, int, float]]:
        """Yield the evaluation images that an image is a copy of: set, row, bits and correlation."""
        shown = compared_pixels(grey)
        if shown is None:
            return
        (image_hash,), (coarse,) = hashes_and_pixels(thumbnail(grey), [WHOLE])
        candidates = [
            candidate
            for number, evaluation in enumerate(self.evaluations)
            for location in evaluation.hashes
            for candidate in self._candidates(image_hash, coarse, number, location)
        ]
        for each in sorted(candidates, key=lambda each: -each.correlation)[:_SEARCHED]:
            file = _hashes_of(each.location)
            small = file.stored.read("thumbnail", each.place, each.place + 1)[0]
            side = small[:, ::-1] if each.is_mirrored else small
            best = best_fit(shown, side, boxes()[each.box], self.min_correlation)
            if best >= self.min_correlation:
                yield each.evaluation, int(file.rows[each.place]), each.num_bits, best

    def _candidates(
        self, image_hash: np.uint64, coarse: np.ndarray, evaluation: int, location: Location
    ) -> Iterator["_Candidate"]:
        """Yield the images of one file that have a crop with a near hash, each with the crop that is most alike."""
        file = _hashes_of(location)
        bits = distance(file.hashes, image_hash)
        places, sides, crops = np.nonzero(bits <= self.max_distance)
        correlations = file.coarse[places, sides, crops].astype(np.float32) @ coarse.astype(np.float32)
        correlations /= COARSE_PX**2 * COARSE_SCALE
        order = np.lexsort((-correlations, places))
        firsts = order[np.unique(places[order], return_index=True)[1]]
        for n in firsts[np.argsort(-correlations[firsts], kind="stable")][:_SEARCHED].tolist():
            place, side, crop = int(places[n]), int(sides[n]), int(crops[n])
            num_bits = int(bits[place, side, crop])
            yield _Candidate(float(correlations[n]), evaluation, location, place, bool(side), crop, num_bits)


@dataclass(frozen=True)
class _Candidate:
    """An evaluation image with a crop that may be the origin of a training image."""

    correlation: float
    evaluation: int
    location: Location
    place: int
    is_mirrored: bool
    box: int
    num_bits: int


def _images(piece: SamplePiece, selected: Location | None) -> Iterator[tuple[int, bytes]]:
    """Yield the row and each encoded image of a piece's samples."""
    for row, record in piece.records(["images"], selected):
        for image in record["images"]:
            yield row, image["bytes"]


@dataclass(frozen=True)
class _Hashes:
    """What `_Hash` stored, all in memory but the thumbnails."""

    stored: ArrayFile
    rows: np.ndarray
    hashes: np.ndarray
    coarse: np.ndarray


@lru_cache(maxsize=32)
def _hashes_of(location: Location) -> _Hashes:
    file = ArrayFile(location)
    return _Hashes(file, file.read("row"), file.read("hash"), file.read("coarse"))
