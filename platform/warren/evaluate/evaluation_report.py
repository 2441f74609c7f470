"""The result of an evaluation on a dataset, and its report in Markdown."""

from dataclasses import asdict, dataclass, field
from typing import Any

from warren.errors import QuarantineError
from warren.evaluate.accuracy import Score
from warren.evaluate.contamination_split import ContaminationSplit
from warren.evaluate.identity import Identity
from warren.evaluate.score_formatting import markdown_cell
from warren.evaluate.statistics import wilson

_SHOWN_TRUTHS = 50


@dataclass(frozen=True)
class Evaluation:
    """One checkpoint on one dataset.

    Attributes:
        identity: Every input that can change the result.
        score: The share of right answers among the samples that were asked.
        by_truth: Per true answer, how many samples and the share answered right.
        chance: What choosing by lot would score, where the model chose between answers.
        num_quarantined: Samples that could not be asked; they are neither right nor wrong.
        reasons: Why they could not, and how many for each reason.
        contamination: Scores with and without the samples found in the training data; None where nobody looked.
    """

    run: str
    step: int
    identity: Identity
    score: Score
    by_truth: dict[str, list[float]]
    chance: float | None = None
    num_quarantined: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    contamination: ContaminationSplit | None = None

    @property
    def metric(self) -> str:
        """What was measured: `exact_match` or `choice`."""
        return str(self.identity.options["metric"])

    @property
    def dataset(self) -> str:
        """What it was measured on, as `name@version`."""
        return str(self.identity.options["dataset"])

    @property
    def value(self) -> float:
        """The score itself, between 0 and 1."""
        return self.score.value

    def to_json(self) -> dict[str, Any]:
        """Return the value as JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Evaluation":
        """Rebuild what `to_json` returned."""
        fields = {**value, "identity": Identity(**value["identity"]), "score": Score(**value["score"])}
        if fields.get("contamination"):
            fields["contamination"] = ContaminationSplit.from_json(fields["contamination"])
        return cls(**fields)

    def summary(self) -> str:
        """Return one line: the score, its interval, what guessing would reach, and what could not be asked."""
        s = self.score
        guess = f"always the most frequent answer: {s.majority:.2%}"
        if self.chance is not None:
            guess = f"choosing by lot: {self.chance:.2%}"
        left_out = f"; {self.num_quarantined} more could not be asked" if self.num_quarantined else ""
        return (
            f"{self.run} at step {self.step}, {self.identity.description}: {s.value:.2%} "
            f"(95 % interval {s.low:.2%} to {s.high:.2%}, {s.num_samples} samples{left_out}; {guess})"
        )

    def check_quarantined(self, max_fraction: float, where: object) -> None:
        """Refuse a result that leaves out more samples than allowed.

        Args:
            max_fraction: Largest share of the samples that may be left out.
            where: The folder that says which they are.

        Raises:
            QuarantineError: More samples could not be asked.
        """
        total = self.num_quarantined + self.score.num_samples
        if self.num_quarantined > max_fraction * total:
            reason, count = max(self.reasons.items(), key=lambda item: item[1])
            raise QuarantineError(
                f"{self.num_quarantined} of {total} samples of {self.dataset} could not be asked, more than the "
                f"allowed {max_fraction:.2%}; the most frequent reason ({count} samples): {reason}. All are listed in "
                f"{where}; mend the dataset, or raise evaluate.max_quarantined_fraction to measure without them"
            )


def render(evaluation: Evaluation) -> str:
    """Write an evaluation as Markdown."""
    lines = [
        f"# {evaluation.run} at step {evaluation.step} on {evaluation.dataset}",
        "",
        evaluation.summary(),
        "",
        *([*evaluation.contamination.describe(), ""] if evaluation.contamination else []),
        "| true answer | samples | right | 95 % interval |",
        "|---|---:|---:|---:|",
    ]
    commonest = sorted(evaluation.by_truth.items(), key=lambda item: -item[1][0])
    lines += [_line(truth, int(n), share) for truth, (n, share) in commonest[:_SHOWN_TRUTHS]]
    if len(commonest) > _SHOWN_TRUTHS:
        lines += ["", f"{len(commonest) - _SHOWN_TRUTHS} rarer answers are in predictions.parquet."]
    if evaluation.reasons:
        lines += [
            "",
            "Samples that could not be asked are in quarantine.parquet. They count neither as right nor as wrong.",
        ]
        lines += ["", "| reason | samples |", "|---|---:|"]
        lines += [f"| {markdown_cell(reason)} | {count} |" for reason, count in evaluation.reasons.items()]
    return "\n".join(lines) + "\n"


def _line(truth: str, num_samples: int, share: float) -> str:
    interval = wilson(share * num_samples, num_samples)
    return f"| {markdown_cell(truth)} | {num_samples} | {share:.1%} | {interval.low:.1%} to {interval.high:.1%} |"
