"""The report of an evaluation, as people read it."""

from dataclasses import dataclass
from typing import Any

_SHOWN_TRUTHS = 50


@dataclass(frozen=True)
class Evaluation:
    """One checkpoint on one dataset.

    Attributes:
        score: The fields of `Score`.
        by_truth: Per true answer, how many samples and the share answered right.
        num_choices: How many answers there were to choose from, where the model chose.
    """

    run: str
    step: int
    dataset: str
    metric: str
    score: dict[str, Any]
    by_truth: dict[str, list[float]]
    num_choices: int | None = None

    @property
    def value(self) -> float:
        """The score itself, between 0 and 1."""
        return float(self.score["value"])

    def summary(self) -> str:
        """Return one line: the score, its interval, and what guessing would reach."""
        s = self.score
        guess = f"always the most frequent answer: {s['majority']:.2%}"
        if self.num_choices:
            guess = f"one of {self.num_choices} by lot: {1 / self.num_choices:.2%}"
        return (
            f"{self.run} at step {self.step} on {self.dataset}: {self.metric} {s['value']:.2%} "
            f"(95 % interval {s['low']:.2%} to {s['high']:.2%}, {s['num_samples']} samples; {guess})"
        )


def render(evaluation: Evaluation) -> str:
    """Write an evaluation as Markdown."""
    lines = [
        f"# {evaluation.run} at step {evaluation.step} on {evaluation.dataset}",
        "",
        evaluation.summary(),
        "",
        "| true answer | samples | right |",
        "|---|---:|---:|",
    ]
    commonest = sorted(evaluation.by_truth.items(), key=lambda item: -item[1][0])
    lines += [f"| {truth} | {int(n)} | {share:.1%} |" for truth, (n, share) in commonest[:_SHOWN_TRUTHS]]
    if len(commonest) > _SHOWN_TRUTHS:
        lines += ["", f"{len(commonest) - _SHOWN_TRUTHS} rarer answers are in predictions.parquet."]
    return "\n".join(lines) + "\n"
