"""POPE (arXiv 2305.10355): is an object there? Three splits of the same images."""

from collections.abc import Sequence

from warren.errors import DataError
from warren.evaluate.benchmarks.benchmark import Answer, Benchmark, Scores
from warren.evaluate.benchmarks.reading import by_key, read_json_lines, refuse_unknown
from warren.storage import Location

_PREFIX, _SUFFIX = "coco_pope_", ".json"
_DENIALS = {"No", "no", "not"}


def _bunny(answers: Sequence[Answer], reference: Location) -> Scores:
    """Score as LLaVA's and Bunny's script: F1 of "yes" in each split, and the mean of the three."""
    labels, questions = _read(reference)
    categories = {str(question["question_id"]): question["category"] for question in questions}
    given = by_key(answers)
    refuse_unknown(given, categories, "POPE")
    splits: dict[str, dict[str, float]] = {}
    per_question: dict[str, dict[str, bool]] = {}
    for split, truths in labels.items():
        # The annotations number their lines anew in each split: the order of the questions is what joins them.
        keys = [key for key, category in categories.items() if category == split]
        missing = [key for key in keys if key not in given]
        if missing or len(keys) != len(truths):
            raise DataError(
                f"POPE {split}: {len(keys) - len(missing)} answers, {len(keys)} questions and {len(truths)} labels; "
                "every label needs one question and one answer"
            )
        decided = [_says_yes(given[key].text) for key in keys]
        splits[split] = _counts(decided, truths)
        per_question |= {
            key: {"yes": yes, "right": yes == truth} for key, yes, truth in zip(keys, decided, truths, strict=True)
        }
    scores = {"splits": splits, "average_f1": sum(split["f1_score"] for split in splits.values()) / len(splits)}
    return Scores(len(categories), len(given), scores, per_question)


def _says_yes(text: str) -> bool:
    """Read the first sentence; anything without a denial is a yes."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return not _DENIALS & set(words)


def _counts(decided: Sequence[bool], truths: Sequence[bool]) -> dict[str, float]:
    pairs = list(zip(decided, truths, strict=True))
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
        "accuracy": (true_yes + true_no) / len(pairs),
        "precision": precision,
        "recall": recall,
        "f1_score": 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        "yes_ratio": sum(decided) / len(decided),
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
    asked = [file for file in (*files, *beside) if file.name.endswith(".jsonl")]
    for file in asked:
        questions = read_json_lines(file)
        if questions and {"question_id", "category"} <= questions[0].keys():
            return labels, questions
    raise DataError(f"{reference}: no JSON lines with question_id and category, which say the split of each question")


BENCHMARK = Benchmark(
    name="pope",
    title="POPE",
    reference="a folder with coco_pope_{adversarial,popular,random}.json and the questions as JSON lines with category",
    obtained_from="https://github.com/AoiDragon/POPE; questions: llava_pope_test.jsonl or bunny_pope_test.jsonl",
    conventions={"bunny": _bunny},
)
