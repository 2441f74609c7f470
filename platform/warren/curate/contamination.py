"""Images of evaluation sets in training data: found by perceptual hash, confirmed by comparing pixels.

A copy may be encoded again, scaled, grey, mirrored or cropped. The first three hardly change a perceptual hash. For the
others every evaluation image is hashed as it is, mirrored, and in crops that are spread over it. A training image whose
hash is near one of these is a candidate; it is a match if its pixels correlate with that crop, or with one close to it.
"""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from warren.config.curate import DecontaminateStep
from warren.curate.arrays import ArrayFile, Arrays
from warren.curate.perceptual import distance, perceptual_hash
from warren.curate.row_mask import RowSet, StoredRows
from warren.curate.samples import Parent, PieceTask, SamplePiece, key_of, sample_pieces, stored_shards
from warren.curate.tasks import Runner, Workspace, finish
from warren.data.images import MAX_PIXELS, decode_image
from warren.storage import Location

SCALES = {1.0: 1, 0.9: 3, 0.8: 4, 0.7: 5}
"""Crops of an evaluation image: side of the crop, as a fraction, and how many lie along each side."""
_THUMBNAIL_PX, _COMPARED_PX = 128, 32
_STEPS = (0.05, 0.025, 0.0125)  # of the search for the crop that fits best, as fractions of the image
_FLAT = 2.0  # standard deviation of brightness below which an image shows nothing that could be recognised
_EVALUATION_ROWS_PER_PIECE = 2000

Box = tuple[float, float, float, float]


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


def boxes() -> Iterator[Box]:
    """Yield the crops that are hashed: left, top, right and bottom as fractions."""
    for side, along in SCALES.items():
        places = np.linspace(0, 1 - side, along)
        for left, top in itertools.product(places.tolist(), places.tolist()):
            yield left, top, left + side, top + side


def prepare(run: Runner, work: Workspace, parents: Sequence[Parent]) -> list[EvaluationImages]:
    """Hash evaluation sets."""
    made = []
    for parent in parents:
        pieces = sample_pieces(stored_shards([parent]), _EVALUATION_ROWS_PER_PIECE)
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


@dataclass(frozen=True)
class _Hash(PieceTask):
    """Hashes of evaluation images and their crops, and thumbnails to compare with."""

    def compute(self) -> Arrays:
        every = list(boxes())
        hashes, rows, thumbnails = [], [], []
        seen: set[bytes] = set()  # many questions are asked about one image
        for row, image in _images(self.piece, None):
            digest = hashlib.sha256(image.tobytes()).digest()
            if digest in seen:
                continue
            seen.add(digest)
            small = image.convert("L").resize((_THUMBNAIL_PX, _THUMBNAIL_PX), Image.Resampling.LANCZOS)
            rows.append(row)
            thumbnails.append(np.asarray(small))
            for side in (small, small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)):
                hashes.append([perceptual_hash(side.crop(_pixels(box))) for box in every])
        shape = (len(rows), _THUMBNAIL_PX, _THUMBNAIL_PX)
        return {
            "row": np.array(rows, np.int64),
            "hash": np.array(hashes, np.uint64).reshape(len(rows), 2, len(every)),
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
        for row, image in _images(self.piece, self.selected):
            grey = image.convert("L")
            shown = _normalised(np.asarray(grey.resize((_COMPARED_PX, _COMPARED_PX), Image.Resampling.LANCZOS)))
            if shown is None:
                continue
            image_hash = np.uint64(perceptual_hash(grey))
            for number, evaluation in enumerate(self.evaluations):
                for location in evaluation.hashes:
                    matches += [(row, number, *match) for match in self._matches(image_hash, shown, location)]
        columns: list[Sequence[Any]] = list(zip(*matches, strict=True)) if matches else [()] * 5
        names = {"row": np.int64, "evaluation": np.int64, "evaluation_row": np.int64, "distance": np.int64}
        made = {name: np.array(column, kind) for (name, kind), column in zip(names.items(), columns, strict=False)}
        return {**made, "correlation": np.array(columns[4], np.float64)}

    def _matches(
        self, image_hash: np.uint64, shown: np.ndarray, location: Location
    ) -> Iterator[tuple[int, int, float]]:
        """Yield the evaluation images of one file that an image is a copy of."""
        file, hashes, rows = _hashes_of(location)
        bits = distance(hashes, image_hash)
        for place in np.unique(np.nonzero(bits <= self.max_distance)[0]).tolist():
            best = max(self._fits(shown, file, place, bits[place]), default=(0.0, 0))
            if best[0] >= self.min_correlation:
                yield int(rows[place]), best[1], best[0]

    def _fits(self, shown: np.ndarray, file: ArrayFile, place: int, bits: np.ndarray) -> Iterator[tuple[float, int]]:
        """Yield the correlation with the crops whose hashes are near, and in how many bits those differ."""
        every = list(boxes())
        thumbnail = Image.fromarray(file.read("thumbnail", place, place + 1)[0])
        sides = (thumbnail, thumbnail.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
        near = np.argwhere(bits <= self.max_distance)
        for side, number in sorted(near.tolist(), key=lambda each: int(bits[tuple(each)]))[:4]:
            yield best_fit(shown, sides[side], every[number]), int(bits[side, number])


def best_fit(shown: np.ndarray, image: Image.Image, box: Box) -> float:
    """Return the highest correlation of pixels with a crop of an image, searched for around a box."""
    best = _correlation(shown, image, box)
    for step in _STEPS:
        for _ in range(3):
            moves = [(dx, dy, ds) for dx in (-step, 0, step) for dy in (-step, 0, step) for ds in (-step, 0, step)]
            tried = [(_correlation(shown, image, _moved(box, *move)), _moved(box, *move)) for move in moves]
            correlation, nearer = max(tried)
            if correlation <= best:
                break
            best, box = correlation, nearer
    return best


def _moved(box: Box, dx: float, dy: float, grow: float) -> Box:
    left, top, right, bottom = box
    moved = (left + dx - grow / 2, top + dy - grow / 2, right + dx + grow / 2, bottom + dy + grow / 2)
    return tuple(min(1.0, max(0.0, edge)) for edge in moved)  # type: ignore[return-value]


def _correlation(shown: np.ndarray, image: Image.Image, box: Box) -> float:
    size = (_COMPARED_PX, _COMPARED_PX)
    left, top, right, bottom = (edge * _THUMBNAIL_PX for edge in box)
    pixels = image.resize(size, Image.Resampling.BILINEAR, box=(left, top, right, bottom))
    other = _normalised(np.asarray(pixels))
    return 0.0 if other is None else float((shown * other).mean())


def _normalised(pixels: np.ndarray) -> np.ndarray | None:
    """Return brightness with mean 0 and standard deviation 1; None for an image of nearly one brightness."""
    values = pixels.astype(np.float64)
    spread = values.std()
    return None if spread < _FLAT else np.asarray((values - values.mean()) / spread)


def _pixels(box: Box) -> tuple[int, int, int, int]:
    return tuple(round(edge * _THUMBNAIL_PX) for edge in box)  # type: ignore[return-value]


def _images(piece: SamplePiece, selected: Location | None) -> Iterator[tuple[int, Image.Image]]:
    """Yield the row and each image of a piece's samples."""
    for row, record in piece.records(["images"], selected):
        for image in record["images"]:
            yield row, decode_image(image["bytes"], MAX_PIXELS)


@lru_cache(maxsize=64)
def _hashes_of(location: Location) -> tuple[ArrayFile, np.ndarray, np.ndarray]:
    file = ArrayFile(location)
    return file, file.read("hash"), file.read("row")
