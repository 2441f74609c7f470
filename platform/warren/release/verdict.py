"""The verdict of the gate on a checkpoint, with every reason, and a person's override of it.

releases/NAME/VERSION/verdict.json                                     of a release, written before `release.json`
runs/RUN/evaluations/STEP/DATASET/METRIC-DIGEST/verdict.json           of a checkpoint that was refused, the newest
"""

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from warren.errors import ConflictError, NotFoundError
from warren.release.records import read_record
from warren.storage import Location

VERDICT = "verdict.json"


@dataclass(frozen=True)
class GateCheck:
    """One condition of the gate.

    Attributes:
        name: The condition's key below `release.gate`.
        passed: Whether it holds.
        reason: What was measured and what was asked for, in one sentence.
    """

    name: str
    passed: bool
    reason: str


@dataclass(frozen=True)
class GateOverride:
    """A person's decision to release all the same."""

    who: str
    why: str
    when: int = field(default_factory=lambda: int(time.time()))


@dataclass(frozen=True)
class GateVerdict:
    """What the gate said of one checkpoint.

    Attributes:
        checks: Every condition that the recipe sets.
        stable: The version that it was compared with; None where there was none, or no comparison was asked for.
        override: Set where somebody released it although a check failed.
        when: Seconds since 1970.
    """

    checks: tuple[GateCheck, ...]
    stable: str | None = None
    override: GateOverride | None = None
    when: int = field(default_factory=lambda: int(time.time()))

    @property
    def passed(self) -> bool:
        """Whether every check holds."""
        return all(check.passed for check in self.checks)

    @property
    def accepted(self) -> bool:
        """Whether it may be released: it passed, or somebody said so."""
        return self.passed or self.override is not None

    @property
    def failures(self) -> str:
        """The reasons of the checks that do not hold."""
        return "; ".join(check.reason for check in self.checks if not check.passed)

    def lines(self) -> list[str]:
        """Return the verdict as text, a line for each check."""
        lines = [f"{'passed' if check.passed else 'FAILED'}  {check.name}: {check.reason}" for check in self.checks]
        if self.override is not None:
            lines.append(f"released all the same by {self.override.who}: {self.override.why}")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return the value as JSON types."""
        return {"passed": self.passed, **asdict(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "GateVerdict":
        """Rebuild what `to_json` returned."""
        override = value["override"]
        return cls(
            checks=tuple(GateCheck(**check) for check in value["checks"]),
            stable=value["stable"],
            override=GateOverride(**override) if override else None,
            when=value["when"],
        )


def read_verdict(folder: Location) -> GateVerdict | None:
    """Return the verdict in the folder of a release or an evaluation, or None."""
    try:
        return read_record(folder / VERDICT, GateVerdict.from_json)
    except NotFoundError:
        return None


def write_accepted(folder: Location, verdict: GateVerdict, complete: bool) -> None:
    """Write the verdict on a release, before the release is complete.

    Args:
        complete: Whether the release is complete already: then the verdict that it was published with stays.
    """
    if not complete:
        (folder / VERDICT).put_json(verdict.to_json())
        return
    with suppress(ConflictError):  # a release of before verdicts were recorded has none
        (folder / VERDICT).create_json(verdict.to_json())


def write_refused(folder: Location, verdict: GateVerdict) -> None:
    """Write the verdict on a checkpoint that is not released, beside its evaluation; the newest counts."""
    (folder / VERDICT).put_json(verdict.to_json())
