"""POPE (arXiv 2305.10355): is an object there? Three splits of the same images."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from warren.errors import DataError
from warren.evaluate.benchmarks.benchmark import Answers, Benchmark, Scores
from warren.evaluate.benchmarks.question import Question
from warren.evaluate.benchmarks.question_files import SHORT_ANSWER, with_images
from warren.evaluate.benchmarks.reference_files import by_key, read_json_lines, refuse_unknown
from warren.evaluate.measures import Measure, blocks, share, summed
from warren.evaluate.scorers.lmms_eval import NAME as LMMS_EVAL
from warren.evaluate.scorers.lmms_eval import complete
from warren.evaluate.scorers.vlmevalkit import NAME as VLMEVALKIT
from warren.evaluate.scorers.vlmevalkit import yes_or_no
from warren.storage import Location

_PREFIX, _SUFFIX = "coco_pope_", ".json"
_DENIALS = {"No", "no", "not"}


def _bunny(answers: Answers, reference: Location) -> Scores:
    """Score as LLaVA's and Bunny's script: F1 of "yes" in each split, and the mean of the three."""
    labels, questions = _read(reference)
    categories = {str(question["question_id"]): question["category"] for question in questions}
    answered = by_key(answers)
    refuse_unknown(answered, categories, "POPE")
    splits: dict[str, dict[str, float]] = {}
    images = {str(question["question_id"]): question["image"] for question in questions}
    measured: dict[str, dict[str, tuple[bool, bool]]] = {}
    per_question: dict[str, dict[str, bool | str]] = {}
    for split, truths in labels.items():
        # The annotations number their lines anew in each split: the order of the questions is what joins them.
        keys = [key for key, category in categories.items() if category == split]
        missing = [key for key in keys if key not in answered and key not in answers.failed]
        if missing or len(keys) != len(truths):
            raise DataError(
                f"POPE {split}: {len(keys) - len(missing)} answers, {len(keys)} questions and {len(truths)} labels; "
                "every label needs one question and one answer"
            )
        pairs = zip(keys, truths, strict=True)
        measured[split] = {key: (_says_yes(answered[key].text), truth) for key, truth in pairs if key in answered}
        splits[split] = _counts(list(measured[split].values()))
        per_question |= {
            key: {"yes": yes, "truth": "yes" if truth else "no", "right": yes == truth}
            for key, (yes, truth) in measured[split].items()
        }
    scores = {"splits": splits, "average_f1": sum(split["f1_score"] for split in splits.values()) / len(splits)}
    measures = _measures(measured, images)
    return Scores(len(categories), len(answered), scores, per_question, measures=measures)


def _lmms_eval(answers: Answers, reference: Location) -> Scores:
    """Score as lmms-eval's tasks `pope` and `pope_full`: an answer must be the word itself; all splits together."""
    return _pooled(answers, reference, LMMS_EVAL, lambda text: text.lower().strip(), _lmms_measures)


def _vlmevalkit(answers: Answers, reference: Location) -> Scores:
    """Score as VLMEvalKit's dataset `POPE`: yes or no as the only one of the two words; all splits, and each."""
    return _pooled(answers, reference, VLMEVALKIT, lambda text: (yes_or_no(text) or "").lower(), _vlmevalkit_measures)


def _pooled(
    answers: Answers,
    reference: Location,
    convention: str,
    read: Callable[[str], str],
    measures_of: Callable[[str, Mapping[str, tuple[str, str]], Mapping[str, str]], list[Measure]],
) -> Scores:
    """Score what every answer says against its label, over all splits and in each."""
    labels, questions = _read(reference)
    places = {str(question["question_id"]): question for question in questions}
    answered = complete(answers, places, "POPE", convention=convention)
    decided: dict[str, dict[str, tuple[str, str]]] = {}
    for split, truths in labels.items():
        keys = [key for key, question in places.items() if question["category"] == split]
        if len(keys) != len(truths):
            raise DataError(
                f"POPE {split}: {len(keys)} questions and {len(truths)} labels; every label needs a question"
            )
        pairs = [(key, "yes" if truth else "no") for key, truth in zip(keys, truths, strict=True) if key in answered]
        decided[split] = {key: (read(answered[key].text), truth) for key, truth in pairs}
    images = {key: question["image"] for key, question in places.items()}
    whole = {key: pair for of in decided.values() for key, pair in of.items()}
    tables = {"": whole} | {f"splits/{split}/": of for split, of in decided.items() if of}
    measures = [measure for prefix, of in tables.items() for measure in measures_of(prefix, of, images)]
    scores: dict[str, Any] = {}
    for measure in measures:
        *parents, name = measure.name.split("/")
        place = scores
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = measure.value
    per_question = {
        key: {"said": prediction, "truth": truth, "right": prediction == truth}
        for key, (prediction, truth) in whole.items()
    }
    return Scores(len(places), len(answered), scores, per_question, measures=measures)


def _lmms_measures(prefix: str, of: Mapping[str, tuple[str, str]], images: Mapping[str, str]) -> list[Measure]:
    """Return lmms-eval's five numbers; its yes_ratio is that of the truths, and its recall knows only yes and no."""
    true = {key: prediction == truth == "yes" for key, (prediction, truth) in of.items()}
    wrong = {key: prediction == "yes" != truth for key, (prediction, truth) in of.items()}
    missed = {key: prediction == "no" != truth for key, (prediction, truth) in of.items()}
    counts = {key: (float(true[key]), float(wrong[key]), float(missed[key])) for key in of}
    return [
        share(
            f"{prefix}pope_accuracy", {key: prediction == truth for key, (prediction, truth) in of.items()}, 1, images
        ),
        summed(f"{prefix}pope_precision", "ratio", {key: (t, t + w) for key, (t, w, _) in counts.items()}, 1, images),
        summed(f"{prefix}pope_recall", "ratio", {key: (t, t + m) for key, (t, _, m) in counts.items()}, 1, images),
        summed(f"{prefix}pope_f1_score", "f1", counts, 1, images),
        share(f"{prefix}pope_yes_ratio", {key: truth == "yes" for key, (_, truth) in of.items()}, 1, images),
    ]


def _vlmevalkit_measures(prefix: str, of: Mapping[str, tuple[str, str]], images: Mapping[str, str]) -> list[Measure]:
    """Return VLMEvalKit's four numbers; an answer that says neither counts as a no in F1, and is wrong in accuracy."""
    counts = {
        key: (
            float(prediction == truth == "yes"),
            float(prediction == "yes" and truth == "no"),
            float(prediction != "yes" and truth == "yes"),
        )
        for key, (prediction, truth) in of.items()
    }
    true_and = {key: (true, true + wrong, true + missed) for key, (true, wrong, missed) in counts.items()}
    return [
        summed(f"{prefix}Overall", "f1", counts, 100, images),
        share(f"{prefix}acc", {key: prediction == truth for key, (prediction, truth) in of.items()}, 100, images),
        summed(
            f"{prefix}precision",
            "ratio",
            {key: (t, prediction) for key, (t, prediction, _) in true_and.items()},
            100,
            images,
        ),
        summed(f"{prefix}recall", "ratio", {key: (t, yes) for key, (t, _, yes) in true_and.items()}, 100, images),
    ]


def _measures(decided: Mapping[str, Mapping[str, tuple[bool, bool]]], images: Mapping[str, str]) -> list[Measure]:
    """Return F1 and accuracy of each split, and the mean F1; splits ask about the same images."""
    parts = {
        split: {key: (float(yes and truth), float(yes > truth), float(yes < truth)) for key, (yes, truth) in of.items()}
        for split, of in decided.items()
    }
    measures = [summed("average_f1", "mean_f1", blocks(list(parts.values())), 1, images)]
    for split, of in decided.items():
        measures.append(summed(f"splits/{split}/f1_score", "f1", parts[split], 1, images))
        measures.append(share(f"splits/{split}/accuracy", {key: yes == truth for key, (yes, truth) in of.items()}))
        measures.append(share(f"splits/{split}/yes_ratio", {key: yes for key, (yes, _) in of.items()}))
        positive = {key: (float(yes and truth), float(yes)) for key, (yes, truth) in of.items()}
        true = {key: (float(yes and truth), float(truth)) for key, (yes, truth) in of.items()}
        measures.append(summed(f"splits/{split}/precision", "ratio", positive, 1, images))
        measures.append(summed(f"splits/{split}/recall", "ratio", true, 1, images))
    return measures


def _says_yes(text: str) -> bool:
    """Read the first sentence; anything without a denial is a yes."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return not _DENIALS & set(words)


def _counts(pairs: Sequence[tuple[bool, bool]]) -> dict[str, float]:
    """Count pairs of decision and truth."""
    true_yes, false_yes = pairs.count((True, True)), pairs.count((True, False))
    true_no, false_no = pairs.count((False, False)), pairs.count((False, True))
    precision = _share(true_yes, true_yes + false_yes)
    recall = _share(true_yes, true_yes + false_no)
    return {
        "samples": len(pairs),
        "TP": true_yes,
        "FP": false_yes,
        "TN": true_no,
        "FN": false_no,
        "accuracy": _share(true_yes + true_no, len(pairs)),
        "precision": precision,
        "recall": recall,
        "f1_score": 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        "yes_ratio": _share(true_yes + false_yes, len(pairs)),
    }


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _read(reference: Location) -> tuple[dict[str, list[bool]], list[dict[str, str]]]:
    """Read the labels of each split, and the questions with their split."""
    files = reference.list()
    labels = {
        file.name[len(_PREFIX) : -len(_SUFFIX)]: [row["label"] != "no" for row in read_json_lines(file)]
        for file in files
        if file.name.startswith(_PREFIX) and file.name.endswith(_SUFFIX)
    }
    if not labels:
        raise DataError(f"{reference}: no {_PREFIX}*{_SUFFIX}, the labels of a split")
    beside = Location(reference.uri.rpartition("/")[0]).list() if reference.name == "annotations" else []
    question_files = [file for file in (*files, *beside) if file.name.endswith(".jsonl")]
    for file in question_files:
        questions = read_json_lines(file)
        if questions and {"question_id", "category"} <= questions[0].keys():
            return labels, questions
    return labels, [question for split in labels for question in _of_annotations(reference, split)]


def _of_annotations(reference: Location, split: str) -> Iterator[dict[str, str]]:
    """Make the questions of a split of its annotations, where there is no question file: ids are `random/1`."""
    for row in read_json_lines(_annotations(reference, split)):
        text = f"{row['text']}\n{SHORT_ANSWER}"
        yield {"question_id": f"{split}/{row['question_id']}", "image": row["image"], "text": text, "category": split}


def _annotations(reference: Location, split: str) -> Location:
    return next(file for file in reference.list() if file.name == f"{_PREFIX}{split}{_SUFFIX}")


def _questions(folder: Location, split: str) -> Iterator[Question]:
    """Read the question file, or make the questions of the annotations."""
    _, rows = _read(folder)
    with_paths = [
        (Question(str(row["question_id"]), row["text"], group=row["category"]), [row["image"]])
        for row in rows
        if split in ("all", row["category"])
    ]
    return with_images(folder, with_paths)


BENCHMARK = Benchmark(
    name="pope",
    title="POPE",
    reference="a folder with coco_pope_{adversarial,popular,random}.json and the questions as JSON lines with category",
    obtained_from="https://github.com/AoiDragon/POPE; questions: llava_pope_test.jsonl or bunny_pope_test.jsonl",
    conventions={"bunny": _bunny, LMMS_EVAL: _lmms_eval, VLMEVALKIT: _vlmevalkit},
    questions={"bunny": _questions},
    data="the same folder with COCO's val2014 images; without a question file the annotations are asked",
    splits=("all", "random", "popular", "adversarial"),
)
