"""The page of an evaluation on a dataset: scores with intervals for each answer, and examples with their images."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from warren import __version__
from warren.data.sample import IMAGE_MARK
from warren.errors import BadSampleError
from warren.evaluate.evaluation_report import Evaluation
from warren.evaluate.measures import Measure, share
from warren.evaluate.report_page import Example, Page, spread, thumbnail

_SHOWN_TRUTHS = 39

PredictionRow = Mapping[str, Any]
"""One row of `predictions.parquet`."""


def choose_examples(predictions: Sequence[PredictionRow]) -> list[int]:
    """Return the places of the predictions that a page shows: twenty right ones and twenty wrong ones, spread out."""
    right = [place for place, row in enumerate(predictions) if row["correct"]]
    wrong = [place for place, row in enumerate(predictions) if not row["correct"]]
    return [*spread(right), *spread(wrong)]


def evaluation_page(
    evaluation: Evaluation,
    predictions: Sequence[PredictionRow],
    examples: Sequence[tuple[PredictionRow, Sequence[bytes]]],
) -> Page:
    """Return the page of an evaluation.

    Args:
        evaluation: The result.
        predictions: Every sample that was asked.
        examples: Those that are shown, with their encoded images.
    """
    measures = [measure.to_json() for measure in _measures(evaluation.metric, predictions)]
    report = {
        "title": evaluation.dataset,
        "convention": evaluation.metric,
        "model": f"{evaluation.run} at step {evaluation.step}",
        "scores": {measure["name"]: measure["value"] for measure in measures},
        "measures": measures,
    }
    shown = {
        kind: [_example(row, images) for row, images in examples if row["correct"] is kind] for kind in (True, False)
    }
    identity = evaluation.identity
    facts = {
        "result": evaluation.summary(),
        "digest of model": identity.checkpoint,
        "digest of dataset": identity.dataset,
        "measured by": f"{identity.code}; page by warren {__version__}",
    }
    if evaluation.contamination:
        facts["contamination"] = " ".join(evaluation.contamination.describe())
    facts |= {f"could not be asked: {reason}": f"{count} samples" for reason, count in evaluation.reasons.items()}
    return Page(report, shown[True], shown[False], facts)


def _measures(metric: str, predictions: Sequence[PredictionRow]) -> list[Measure]:
    """Return the share of right answers, of all samples and by true answer, the most frequent answers first."""
    everything = {str(row["key"]): bool(row["correct"]) for row in predictions}
    truths = [truth for truth, _ in Counter(str(row["truth"]) for row in predictions).most_common(_SHOWN_TRUTHS)]
    parts = [
        share(
            f"true answer {truth}",
            {str(row["key"]): bool(row["correct"]) for row in predictions if row["truth"] == truth},
        )
        for truth in truths
    ]
    return [share(metric, everything), *parts]


def _example(row: PredictionRow, images: Sequence[bytes]) -> Example:
    shown = []
    for image in images:
        try:
            shown.append(thumbnail(image))
        except BadSampleError:  # the text alone says what was asked
            continue
    question = str(row["question"]).replace(IMAGE_MARK, "").strip()
    return Example(str(row["key"]), question, str(row["answer"]), str(row["truth"]), tuple(shown))
