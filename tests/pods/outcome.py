"""What a run of `make test-cluster` showed."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Outcome:
    """The last line of a run; None stands for what was not part of it.

    Attributes:
        nodes: The largest Ray cluster, head included.
        loss_curve_equal: Losses and weights of the disturbed run are bit-equal to those of the undisturbed one.
        streams_broken: Accepted streams that did not end as they should, though the node whose proxy took them stayed.
        shown: Counts and seconds beside the promises.
    """

    nodes: int = 0
    loss_curve_equal: bool | None = None
    samples_lost: int | None = None
    samples_repeated: int | None = None
    streams_broken: int | None = None
    cut: list[str] = field(default_factory=list)
    killed: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    drained: list[str] = field(default_factory=list)
    shown: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return asdict(self)

    @property
    def is_good(self) -> bool:
        """Tell whether every promise that was tried was kept."""
        losses = self.loss_curve_equal is not False and not self.samples_lost and not self.samples_repeated
        return losses and not self.streams_broken
