"""The step `decontaminate`: images and questions of evaluation sets in the training data, and their certificate."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from warren.config.curate import DecontaminateStep
from warren.curate.array_files import ArrayFile
from warren.curate.crop_matching import SCALES
from warren.curate.image_copy_detection import FindImages, HashImages
from warren.curate.question_search import MIN_SHARE, FindQuestions, HashQuestions, index_questions
from warren.curate.report import ImagePair
from warren.curate.row_mask import RowSet, StoredRows
from warren.curate.sample_pieces import ROWS_PER_IMAGE_PIECE, Parent, SamplePiece, key_of, sample_pieces, stored_shards
from warren.curate.tasks import Runner, Workspace, finish
from warren.storage import Location

_PAIRS_SHOWN = 8  # in a report


@dataclass(frozen=True)
class EvaluationSet:
    """An evaluation set and the files that describe its images and questions.

    Attributes:
        hashes: Results of `HashImages`.
        questions: Results of `HashQuestions`; none, if questions are not looked for.
    """

    reference: str
    digest: str
    pieces: tuple[SamplePiece, ...]
    hashes: tuple[Location, ...]
    questions: tuple[Location, ...]

    @property
    def num_samples(self) -> int:
        """Number of its samples."""
        return self.pieces[-1].stop


@dataclass(frozen=True)
class Matches:
    """Images and questions of evaluation sets that are in the training data.

    Attributes:
        images: Files of `row`, `evaluation`, `evaluation_row`, `distance` (of hashes, in bits) and `correlation`.
        questions: Files of `row`, `evaluation`, `evaluation_row` and `share` (of the question's runs of words).
    """

    images: tuple[ArrayFile, ...]
    questions: tuple[ArrayFile, ...]

    def rows(self) -> np.ndarray:
        """Return the samples that show an image or contain a question, each once."""
        files = [*self.images, *self.questions]
        return np.unique(np.concatenate([np.empty(0, np.int64), *(file.read("row") for file in files)]))


def prepare(
    run: Runner, work: Workspace, step: DecontaminateStep, parents: Sequence[Parent]
) -> tuple[EvaluationSet, ...]:
    """Hash the images and questions of evaluation sets."""
    made = []
    for parent in parents:
        pieces = sample_pieces(stored_shards([parent]), ROWS_PER_IMAGE_PIECE)
        hashes = finish(run, work / f"images-{parent.reference}", [HashImages(piece) for piece in pieces])
        questions: list[ArrayFile] = []
        if step.question_words is not None:
            tasks = [HashQuestions(piece, step.question_words) for piece in pieces]
            questions = finish(run, work / f"questions-{parent.reference}", tasks)
        files = [tuple(file.location for file in each) for each in (hashes, questions)]
        made.append(EvaluationSet(parent.reference, parent.manifest.digest, tuple(pieces), files[0], files[1]))
    return tuple(made)


def find(
    run: Runner,
    work: Workspace,
    step: DecontaminateStep,
    evaluations: Sequence[EvaluationSet],
    pieces: Sequence[SamplePiece],
    selected: Location,
    near: Location | None,
) -> Matches:
    """Look for evaluation sets among the selected samples.

    Args:
        near: Pairs of samples and evaluation images with near embeddings (`near_pairs`), which are compared too.
    """
    hashes = tuple((number, file) for number, each in enumerate(evaluations) for file in each.hashes)
    tasks = [FindImages(piece, hashes, selected, step.max_distance, step.min_correlation, near) for piece in pieces]
    images = finish(run, work / "images", tasks)
    questions: list[ArrayFile] = []
    if step.question_words is not None:
        index = index_questions(run, work / "questions-index", [each.questions for each in evaluations]).location
        asked = [FindQuestions(piece, index, selected, step.question_words) for piece in pieces]
        questions = finish(run, work / "questions", asked)
    return Matches(tuple(images), tuple(questions))


def without_matches(matches: Matches, selected: StoredRows) -> RowSet:
    """Return the selected samples that match nothing."""
    clean = selected.load()
    clean.remove(matches.rows())
    return clean


def certificate(
    step: DecontaminateStep,
    evaluations: Sequence[EvaluationSet],
    pieces: Sequence[SamplePiece],
    matches: Matches,
    checked: int,
) -> dict[str, Any]:
    """Return the content of a dataset's certificate: the evaluation sets, the method and the matches."""
    images = list(_listed(matches.images, ("distance", "correlation"), evaluations, pieces))
    questions = list(_listed(matches.questions, ("share",), evaluations, pieces))
    return {
        "samples_checked": checked,
        "evaluations": [
            {"dataset": each.reference, "digest": each.digest, "samples": each.num_samples} for each in evaluations
        ],
        "method": {
            "hash": "pHash, 64 bits",
            "max_distance": step.max_distance,
            "min_cosine": step.min_cosine,
            "min_correlation": step.min_correlation,
            "crops": {str(side): along * along for side, along in SCALES.items()},
            "mirrored": True,
            "question_words": step.question_words,
            "question_min_share": MIN_SHARE,
        },
        "samples_matched": len(matches.rows()),
        "evaluation_images_matched": len({(match["evaluation"], match["evaluation_key"]) for match in images}),
        "evaluation_questions_matched": len({(match["evaluation"], match["evaluation_key"]) for match in questions}),
        "evaluation_samples": _evaluation_samples(evaluations, matches),
        "removed": step.remove,
        "matches": images,
        "question_matches": questions,
    }


def image_pairs(evaluations: Sequence[EvaluationSet], matches: Matches) -> tuple[ImagePair, ...]:
    """Return the first matches of images, for a report."""
    pairs: list[ImagePair] = []
    for file in matches.images:
        if len(pairs) >= _PAIRS_SHOWN:
            break
        columns = [file.read(name, 0, _PAIRS_SHOWN).tolist() for name in ("row", "evaluation", "evaluation_row")]
        pairs += [
            ImagePair(row, evaluations[number].pieces, other) for row, number, other in zip(*columns, strict=True)
        ]
    return tuple(pairs[:_PAIRS_SHOWN])


def _listed(
    files: Iterable[ArrayFile],
    measures: Sequence[str],
    evaluations: Sequence[EvaluationSet],
    pieces: Sequence[SamplePiece],
) -> Iterable[dict[str, Any]]:
    """Yield the matches of some files with their keys."""
    for file in files:
        names = ("row", "evaluation", "evaluation_row", *measures)
        for row, number, other, *values in zip(*(file.read(name).tolist() for name in names), strict=True):
            yield {
                "key": key_of(pieces, row),
                "evaluation": evaluations[number].reference,
                "evaluation_key": key_of(evaluations[number].pieces, other),
                **{name: round(value, 4) for name, value in zip(measures, values, strict=True)},
            }


def _evaluation_samples(evaluations: Sequence[EvaluationSet], matches: Matches) -> dict[str, list[str]]:
    """Return for each evaluation set the keys of all samples whose image or question was found.

    Many questions may be asked about an image that was found; the matches name the first of them.
    """
    samples = {}
    for number, evaluation in enumerate(evaluations):
        images, questions = (_found_rows(files, number) for files in (matches.images, matches.questions))
        rows = np.union1d(_with_equal_images(evaluation, images), questions)
        samples[evaluation.reference] = _keys(evaluation.pieces, rows)
    return samples


def _found_rows(files: Iterable[ArrayFile], evaluation: int) -> np.ndarray:
    parts = [file.read("evaluation_row")[file.read("evaluation") == evaluation] for file in files]
    return np.unique(np.concatenate([np.empty(0, np.int64), *parts]))


def _with_equal_images(evaluation: EvaluationSet, matched: np.ndarray) -> np.ndarray:
    """Return the rows of an evaluation set that show one of the images of some rows."""
    files = [ArrayFile(location) for location in evaluation.hashes]
    rows, digests = (np.concatenate([file.read(name) for file in files]) for name in ("shown_row", "shown_digest"))
    images = np.unique(digests, axis=0, return_inverse=True)[1].ravel()
    return np.unique(rows[np.isin(images, images[np.isin(rows, matched)])])


def _keys(pieces: Sequence[SamplePiece], rows: np.ndarray) -> list[str]:
    keys: list[str] = []
    for piece in pieces:
        of_piece = set(rows[(rows >= piece.first) & (rows < piece.stop)].tolist())
        if of_piece:
            keys += [record["key"] for row, record in piece.records(["key"]) if row in of_piece]
    return keys
