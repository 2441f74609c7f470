"""The report of an evaluation, as people read it."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Evaluation:
    """One checkpoint on one dataset.

    Attributes:
        score: The fields of `Score`.
        by_truth: Per true answer, how many samples and the share answered right.
    """

    run: str
    step: int
    dataset: str
    metric: str
    score: dict[str, Any]
    by_truth: dict[str, list[float]]

    @property
    def value(self) -> float:
        """The score itself, between 0 and 1."""
        return float(self.score["value"])

    def summary(self) -> str:
        """Return one line: the score, its interval, and what guessing would reach."""
        s = self.score
        return (
            f"{self.run} at step {self.step} on {self.dataset}: {self.metric} {s['value']:.2%} "
            f"(95 % interval {s['low']:.2%} to {s['high']:.2%}, {s['num_samples']} samples; "
            f"always the most frequent answer: {s['majority']:.2%})"
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
    lines += [f"| {truth} | {int(n)} | {share:.1%} |" for truth, (n, share) in evaluation.by_truth.items()]
    return "\n".join(lines) + "\n"
