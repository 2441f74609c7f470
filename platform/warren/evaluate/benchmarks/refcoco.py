"""RefCOCO (arXiv 1608.00272): the box of the object that a phrase describes."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from warren.data.image_formats import open_image
from warren.errors import DataError
from warren.evaluate.benchmarks.benchmark import Answers, Benchmark, Scores
from warren.evaluate.benchmarks.question import Question
from warren.evaluate.benchmarks.table_records import Record, find_tables, read_records
from warren.evaluate.measures import mean, share
from warren.evaluate.scorers.boxes import ImageBox, first_box, holds_centre, intersection_over_union, relative_box
from warren.evaluate.scorers.lmms_eval import NAME as LMMS_EVAL
from warren.evaluate.scorers.lmms_eval import complete
from warren.storage import Location

_SPLITS = ("val", "testA", "testB", "test")
_THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)
_NO_BOX: ImageBox = (0.0, 0.0, 0.0, 0.0)  # what an answer without a box counts as
_PROMPT = (
    "Bounding box coordinates are specified in the format (top-left x, top-left y, bottom-right x, bottom-right y). "
    "All values are floating point numbers bounded between 0 and 1. Please provide the bounding box coordinate of the "
    "region this sentence describes: "
)


def _phrases(files: Sequence[Location]) -> Iterator[tuple[str, str, Record]]:
    """Yield every phrase of every object with its id: the object's, and the phrase's number."""
    for file in files:
        for record in read_records(file):
            phrases = record["answer"]
            if not isinstance(phrases, list) or not phrases:
                raise DataError(f"{record.where}: answer must be a list of phrases, found {str(phrases)[:80]!r}")
            for number, phrase in enumerate(phrases):
                yield f"{record['question_id']}-{number}", str(phrase), record


def _asked_splits(answers: Answers, reference: Location) -> dict[str, Record]:
    """Return the phrases of the splits that answers are of; each split counts as a whole."""
    files: dict[str, list[Location]] = defaultdict(list)
    for file in find_tables(reference, ""):
        files[file.name.partition("-")[0]].append(file)
    keys = {answer.key for answer in answers} | answers.failed
    splits = [{key: record for key, _, record in _phrases(of)} for of in files.values()]
    answered = [split for split in splits if keys & split.keys()] or splits
    return {key: record for split in answered for key, record in split.items()}


def _truth(record: Record) -> ImageBox:
    box = record["bbox"]
    if not isinstance(box, list) or len(box) != 4:
        raise DataError(f"{record.where}: bbox must be left, upper, width and height, found {str(box)[:80]!r}")
    images = record.image("image")
    if not images:
        raise DataError(f"{record.where}: no image, whose size scales the box")
    try:
        with open_image(images[0].read()) as image:
            return relative_box(box, image.size)
    except OSError as error:
        raise DataError(f"{record.where}: the image cannot be read, and its size scales the box: {error}") from None


def _lmms_eval(answers: Answers, reference: Location) -> Scores:
    """Score as lmms-eval's tasks `refcoco_bbox_rec_*`: the first `[x1, y1, x2, y2]` of an answer, between 0 and 1."""
    records = _asked_splits(answers, reference)
    answered = complete(answers, records, "RefCOCO")
    truths = {key: _truth(records[key]) for key in answered}
    boxes = {key: first_box(answer.text.strip()) for key, answer in answered.items()}
    overlaps = {key: intersection_over_union(truth, boxes[key] or _NO_BOX) for key, truth in truths.items()}
    centred = {key: holds_centre(truth, boxes[key] or _NO_BOX) for key, truth in truths.items()}
    images = {key: _image(records[key]) for key in answered}
    measures = [
        share("refcoco_ACC@0.5", {key: value >= 0.5 for key, value in overlaps.items()}, 1, images),
        mean("refcoco_IoU", overlaps, 1, images),
        *(
            share(f"refcoco_ACC@{least}", {key: value >= least for key, value in overlaps.items()}, 1, images)
            for least in _THRESHOLDS
            if least != 0.5
        ),
        share("refcoco_Center_ACC", centred, 1, images),
    ]
    per_question: dict[str, Any] = {
        key: {
            "truth": str(list(truth)),
            "prediction": boxes[key],
            "score": overlaps[key],
            "right": overlaps[key] >= 0.5,
        }
        for key, truth in truths.items()
    }
    scores = {measure.name: measure.value for measure in measures}
    return Scores(len(records), len(answered), scores, per_question, measures=measures)


def _image(record: Record) -> str:
    """Return the name of COCO's image; a row's own file is named after image and object."""
    return str(record.get("file_name") or record["question_id"]).rpartition(".")[0].rpartition("_")[0] or str(
        record["question_id"]
    )


def _questions(folder: Location, split: str) -> Iterator[Question]:
    for key, phrase, record in _phrases(find_tables(folder, f"{split}-")):
        yield Question(key, f"{_PROMPT}{phrase}", record.image("image"), cluster=_image(record))


BENCHMARK = Benchmark(
    name="refcoco",
    title="RefCOCO (boxes)",
    reference="the folder of its Parquet files, such as val-00000-of-00003.parquet",
    obtained_from="https://huggingface.co/datasets/lmms-lab/RefCOCO (RefCOCOg and RefCOCO+ have the same format)",
    conventions={LMMS_EVAL: _lmms_eval},
    questions={LMMS_EVAL: _questions},
    data="the same folder; images are in it",
    splits=_SPLITS,
)
