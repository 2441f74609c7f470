"""Scores with and without the questions that were found in the training data."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from warren.evaluate.accuracy import Score, score


@dataclass(frozen=True)
class ContaminationSplit:
    """The scores of an evaluation on samples that were in the training data, and on all others.

    Attributes:
        searched: Training datasets in which the evaluation set was looked for.
        not_searched: The others.
        contaminated: The score on samples whose image or question was found and trained on; None if there are none.
        clean: The score on all other samples.
    """

    searched: tuple[str, ...]
    not_searched: tuple[str, ...]
    contaminated: Score | None
    clean: Score

    @classmethod
    def of(
        cls, rows: Sequence[Mapping[str, Any]], contaminated_keys: Mapping[str, Collection[str] | None]
    ) -> "ContaminationSplit | None":
        """Split the samples that were asked; None if the evaluation set was not looked for anywhere.

        Args:
            rows: `key`, `correct` and `truth` of each sample.
            contaminated_keys: For each training dataset the keys that were found in it; None where nobody looked.
        """
        searched = tuple(sorted(name for name, keys in contaminated_keys.items() if keys is not None))
        if not searched:
            return None
        keys = {key for each in contaminated_keys.values() if each is not None for key in each}
        parts = [[row for row in rows if (row["key"] in keys) is inside] for inside in (True, False)]
        hit, clean = (score([row["correct"] for row in part], [row["truth"] for row in part]) for part in parts)
        return cls(searched, tuple(sorted(set(contaminated_keys) - set(searched))), hit if parts[0] else None, clean)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ContaminationSplit":
        """Rebuild what `dataclasses.asdict` returned."""
        contaminated = Score(**value["contaminated"]) if value["contaminated"] else None
        clean = Score(**value["clean"])
        return cls(tuple(value["searched"]), tuple(value["not_searched"]), contaminated, clean)

    def describe(self) -> list[str]:
        """Return sentences for a report."""
        lines = [f"The evaluation set was looked for in {', '.join(self.searched)}."]
        if self.not_searched:
            lines += [f"It was not looked for in {', '.join(self.not_searched)}."]
        if self.contaminated is None:
            return [*lines, "No sample of it was trained on there."]
        return [
            *lines,
            f"{self.contaminated.num_samples} samples were found there and trained on: {_shown(self.contaminated)}. "
            f"The score without them: {_shown(self.clean)}, {self.clean.num_samples} samples.",
        ]


def _shown(part: Score) -> str:
    return f"{part.value:.2%} (95 % interval {part.low:.2%} to {part.high:.2%})"
