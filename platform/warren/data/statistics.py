"""Counts of a dataset's samples. They are small, and the parts of a dataset can be merged in any order."""

import bisect
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from warren.data.batch import Quarantined
from warren.data.sample import Sample

_SIDES_PX = (64, 128, 224, 256, 384, 512, 768, 1024, 1536, 2048, 4096)
_CHARACTERS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384)
_VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|\d+|(?<=: ).*")


@dataclass
class Statistics:
    """Counts of samples.

    Attributes:
        totals: `samples`, `images`, `text_only`, `characters`, `image_bytes`, `quarantined`.
        longer_side_px: Images by the upper bound of their longer side.
        characters: Samples by the upper bound of their text's length.
        questions: Samples by the number of user turns.
        reasons: Quarantined samples by reason, without the numbers and names in it.
    """

    totals: Counter[str] = field(default_factory=Counter)
    longer_side_px: Counter[str] = field(default_factory=Counter)
    characters: Counter[str] = field(default_factory=Counter)
    questions: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, sample: Sample, sizes_px: Iterable[tuple[int, int]]) -> None:
        """Count a sample and the (width, height) of its images."""
        length = sum(len(turn.text) for turn in sample.turns)
        self.totals.update(
            samples=1,
            images=len(sample.images),
            text_only=not sample.images,
            characters=length,
            image_bytes=sum(map(len, sample.images)),
        )
        self.longer_side_px.update(_bin(max(size), _SIDES_PX) for size in sizes_px)
        self.characters[_bin(length, _CHARACTERS)] += 1
        self.questions[str(sum(turn.role == "user" for turn in sample.turns))] += 1

    def add_bad(self, bad: Quarantined) -> None:
        """Count a sample that cannot be used."""
        self.totals["quarantined"] += 1
        self.reasons[_VARYING.sub("…", bad.reason)] += 1

    def merge(self, other: "Statistics") -> None:
        """Add another part's counts."""
        for name in self.__dataclass_fields__:
            getattr(self, name).update(getattr(other, name))

    def to_json(self) -> dict[str, Any]:
        """Return the value as JSON types, sorted by bound."""
        return {name: dict(sorted(getattr(self, name).items(), key=_by_bound)) for name in self.__dataclass_fields__}

    @classmethod
    def from_json(cls, value: Mapping[str, Mapping[str, int]]) -> "Statistics":
        """Rebuild what `to_json` returned; other entries are left out."""
        return cls(**{name: Counter(value[name]) for name in cls.__dataclass_fields__ if name in value})


def _bin(value: int, bounds: Sequence[int]) -> str:
    place = bisect.bisect_left(bounds, value)
    return f"≤ {bounds[place]}" if place < len(bounds) else f"> {bounds[-1]}"


def _by_bound(item: tuple[str, int]) -> tuple[int, str]:
    numbers = re.findall(r"\d+", item[0])
    return (int(numbers[0]) + item[0].startswith(">") if numbers else 0, item[0])
