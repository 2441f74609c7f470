"""COCO captions (arXiv 1504.00325), validation images: captions compared with those of five people."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from warren.errors import DataError
from warren.evaluate.benchmarks.benchmark import Answers, Benchmark, Scores
from warren.evaluate.benchmarks.question import Question
from warren.evaluate.benchmarks.question_files import required_file, with_images
from warren.evaluate.benchmarks.reference_files import read_json
from warren.evaluate.measures import mean
from warren.evaluate.scorers.captions import Cider, bleu, rouge_l, tokens
from warren.evaluate.scorers.lmms_eval import NAME as LMMS_EVAL
from warren.evaluate.scorers.lmms_eval import complete
from warren.storage import Location

_TITLE = "COCO captions"
_PROMPT = "Provide a one-sentence caption for the provided image."
_YEARS = ("2014", "2017")


def _captions(file: Location) -> dict[str, list[str]]:
    """Return people's captions by image."""
    captions: dict[str, list[str]] = defaultdict(list)
    for row in _part(file, "annotations", "image_id", "caption"):
        captions[str(row["image_id"])].append(str(row["caption"]))
    return dict(captions)


def _part(file: Location, name: str, *fields: str) -> list[dict[str, Any]]:
    """Return one of the lists of COCO's annotation file."""
    value = read_json(file)
    rows = value.get(name) if isinstance(value, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) and {*fields} <= row.keys() for row in rows):
        raise DataError(f"{file}: expected COCO's captions file with a list {name!r} of {', '.join(fields)}")
    return rows


def _lmms_eval(answers: Answers, reference: Location) -> Scores:
    """Score as lmms-eval's tasks `coco*_cap_val`, but for METEOR. BLEU is of all captions together: no interval."""
    captions = _captions(required_file(reference, *(f"captions_val{year}.json" for year in _YEARS), "*captions*.json"))
    answered = complete(answers, captions, _TITLE)
    written = {key: tokens(answer.text.strip()) for key, answer in answered.items()}
    people = {key: [tokens(caption) for caption in captions[key]] for key in answered}
    cider = Cider(people.values())
    measures = [
        mean("coco_CIDEr", {key: cider.score(words, people[key]) for key, words in written.items()}),
        mean("coco_ROUGE_L", {key: rouge_l(words, people[key]) for key, words in written.items()}),
    ]
    scores = {measure.name: measure.value for measure in measures}
    scores |= {
        f"coco_Bleu_{order}": value
        for order, value in enumerate(bleu(list(written.values()), list(people.values())), 1)
    }
    of_each = [dict(zip(measure.keys, (row[0] for row in measure.components), strict=True)) for measure in measures]
    per_question = {
        key: {"truth": captions[key][0], "score": of_each[0][key], "rouge_l": of_each[1][key]} for key in answered
    }
    return Scores(len(captions), len(answered), scores, per_question, measures=measures)


def _questions(folder: Location, split: str) -> Iterator[Question]:
    file = required_file(folder, f"captions_{split}.json")
    captions = _captions(file)
    questions = [
        (Question(str(row["id"]), _PROMPT), [str(row["file_name"])])
        for row in _part(file, "images", "id", "file_name")
        if str(row["id"]) in captions
    ]
    return with_images(folder, questions)


BENCHMARK = Benchmark(
    name="coco_caption",
    title=_TITLE,
    reference="captions_val2014.json or captions_val2017.json",
    obtained_from="https://cocodataset.org/#download",
    conventions={LMMS_EVAL: _lmms_eval},
    questions={LMMS_EVAL: _questions},
    data="the same file and its images",
    splits=tuple(f"val{year}" for year in _YEARS),
    max_new_tokens=64,
)
