"""Images of evaluation sets among training images: found by hash or embedding, confirmed by comparing pixels.

A copy may be encoded again, scaled, grey, mirrored or cropped. The first three hardly change a perceptual hash. For the
others every evaluation image is hashed as it is, mirrored, and in crops that are spread over it. A training image whose
hash is near one of these, or whose embedding is near the image's, is a candidate. It is a match if its pixels correlate
with that crop or with one close to it, and if it is grey or has the same colours.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from warren.curate.array_files import ArrayFile, Arrays
from warren.curate.crop_matching import (
    COARSE_PX,
    COARSE_SCALE,
    COLOURS_SHAPE,
    THUMBNAIL_PX,
    WHOLE,
    are_like_coloured,
    best_fit,
    boxes,
    colours,
    compared_pixels,
    hashes_and_pixels,
    thumbnail,
)
from warren.curate.perceptual_hash import distance
from warren.curate.sample_pieces import PieceTask, SamplePiece
from warren.data.images import MAX_PIXELS, decode_image
from warren.storage import Location

_SEARCHED = 8  # evaluation images for one training image; where all look alike, hundreds have a hash that is near
_ALIKE = 0.98  # correlation of 8 × 8 pixels from which on whole images are compared, whatever their hashes
_DIGEST_BYTES = 16


@dataclass(frozen=True)
class HashImages(PieceTask):
    """Hashes of evaluation images and their crops, and thumbnails to compare with."""

    def compute(self) -> Arrays:
        """Return the result."""
        every = list(boxes())
        hashes, coarse, rows, thumbnails, coloured = [], [], [], [], []
        shown: list[tuple[int, bytes]] = []
        seen: set[bytes] = set()  # many questions are asked about one image
        for row, encoded in _images(self.piece, None):
            digest = hashlib.blake2b(encoded, digest_size=_DIGEST_BYTES).digest()
            shown.append((row, digest))
            if digest in seen:
                continue
            seen.add(digest)
            image = decode_image(encoded, MAX_PIXELS)
            small = thumbnail(image.convert("L"))
            rows.append(row)
            thumbnails.append(small)
            coloured.append(colours(image))
            # As it is and mirrored; mirroring the one evaluation image is cheaper than mirroring every training image.
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
            "colours": np.array(coloured, np.uint8).reshape(len(rows), *COLOURS_SHAPE),
            "shown_row": np.array([row for row, _ in shown], np.int64),
            "shown_digest": np.frombuffer(b"".join(digest for _, digest in shown), np.uint8).reshape(-1, _DIGEST_BYTES),
        }


@dataclass(frozen=True)
class FindImages(PieceTask):
    """The images of one piece of the samples that are copies of evaluation images.

    Attributes:
        hashes: Results of `HashImages`, with the number of the evaluation set.
        near: Pairs of `NearEmbeddings` by piece; None if embeddings are not compared.
    """

    hashes: tuple[tuple[int, Location], ...]
    selected: Location
    max_distance: int
    min_correlation: float
    near: Location | None

    def compute(self) -> Arrays:
        """Return the result."""
        matches: list[tuple[int, int, int, int, float]] = []
        near = self._near()
        for row, encoded in _images(self.piece, self.selected):
            image = decode_image(encoded, MAX_PIXELS)
            matches += [(row, *match) for match in self._matches(image, near.get(row, frozenset()))]
        columns: list[Sequence[Any]] = list(zip(*matches, strict=True)) if matches else [()] * 5
        names = {"row": np.int64, "evaluation": np.int64, "evaluation_row": np.int64, "distance": np.int64}
        made = {name: np.array(column, kind) for (name, kind), column in zip(names.items(), columns, strict=False)}
        return {**made, "correlation": np.array(columns[4], np.float64)}

    def _near(self) -> dict[int, frozenset[tuple[int, int]]]:
        """Return the evaluation images, as set and row, whose embeddings are near each sample's."""
        if self.near is None:
            return {}
        file = ArrayFile(self.near)
        start, stop = file.read("starts", self.piece.number, self.piece.number + 2).tolist()
        near: dict[int, set[tuple[int, int]]] = {}
        columns = [file.read(name, start, stop).tolist() for name in ("row", "evaluation", "evaluation_row")]
        for row, number, other in zip(*columns, strict=True):
            near.setdefault(row, set()).add((number, other))
        return {row: frozenset(pairs) for row, pairs in near.items()}

    def _matches(self, image: Image.Image, near: frozenset[tuple[int, int]]) -> Iterator[tuple[int, int, int, float]]:
        """Yield the evaluation images that an image is a copy of: set, row, bits and correlation."""
        grey = image.convert("L")
        shown = compared_pixels(grey)
        if shown is None:
            return
        (image_hash,), (coarse,) = hashes_and_pixels(thumbnail(grey), [WHOLE])
        candidates = [
            candidate
            for number, location in self.hashes
            for candidate in self._candidates(image_hash, coarse, number, location, near)
        ]
        coloured = colours(image)
        # The search for the best crop is the dear part, so only the likeliest candidates get it.
        for each in sorted(candidates, key=lambda each: -each.correlation)[:_SEARCHED]:
            file = _hashes_of(each.location)
            small = file.stored.read("thumbnail", each.place, each.place + 1)[0]
            side = small[:, ::-1] if each.is_mirrored else small
            best, box = best_fit(shown, side, boxes()[each.box], self.min_correlation)
            if best < self.min_correlation:
                continue
            original = file.stored.read("colours", each.place, each.place + 1)[0]
            if are_like_coloured(coloured, original[:, :, ::-1] if each.is_mirrored else original, box):
                yield each.evaluation, int(file.rows[each.place]), each.num_bits, best

    def _candidates(
        self,
        image_hash: np.uint64,
        coarse: np.ndarray,
        evaluation: int,
        location: Location,
        near: frozenset[tuple[int, int]],
    ) -> Iterator["_Candidate"]:
        """Yield the images of one file with a near hash or embedding, each with the crop that is most alike."""
        file = _hashes_of(location)
        bits = distance(file.hashes, image_hash)
        compared = bits <= self.max_distance
        if len(file.rows):  # of flat and symmetric images, a hash has bits of chance; few pixels tell those apart
            compared[..., 0] |= file.whole @ coarse.astype(np.float32) >= _ALIKE * COARSE_PX**2 * COARSE_SCALE
        if near:
            compared |= np.isin(file.rows, [row for number, row in near if number == evaluation])[:, None, None]
        places, sides, crops = np.nonzero(compared)
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
    """What `HashImages` stored, all in memory but the thumbnails."""

    stored: ArrayFile
    rows: np.ndarray
    hashes: np.ndarray
    coarse: np.ndarray
    whole: np.ndarray  # float32; `coarse` of the crop that is the whole image


@lru_cache(maxsize=32)
def _hashes_of(location: Location) -> _Hashes:
    file = ArrayFile(location)
    coarse = file.read("coarse")
    return _Hashes(file, file.read("row"), file.read("hash"), coarse, coarse[:, :, 0].astype(np.float32))
