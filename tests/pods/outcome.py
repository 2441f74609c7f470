"""What a run of `make test-cluster` showed."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Outcome:
    """The last line of a run; None stands for what was not part of it.

    Attributes:
        nodes: The largest Ray cluster, head included.
        loss_curve_equal: Losses and weights of the disturbed run are bit-equal to those of the undisturbed one.
        drained_loss_curve_close: Losses of a run that lost a worker to a drain agree with them up to rounding.
        drained_steps_repeated: Steps that it trained twice; none, because it commits a checkpoint where it stands.
        readers_apart: Ray Data's reading tasks ran, and only on nodes that trained nothing.
        streams_broken: Accepted streams that did not end as they should, though the node whose proxy took them stayed.
        autoscaled: The numbers of workers that Ray's autoscaler went through.
        failed: Parts that did not come to their end, and why.
        shown: Counts and seconds beside the promises.
    """

    nodes: int = 0
    loss_curve_equal: bool | None = None
    drained_loss_curve_close: bool | None = None
    drained_steps_repeated: int | None = None
    samples_lost: int | None = None
    samples_repeated: int | None = None
    readers_apart: bool | None = None
    streams_broken: int | None = None
    autoscaled: list[int] | None = None
    cut: list[str] = field(default_factory=list)
    killed: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    drained: list[str] = field(default_factory=list)
    shown: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return asdict(self)

    @property
    def is_good(self) -> bool:
        """Tell whether every promise that was tried was kept."""
        scaled = self.autoscaled is None or (max(self.autoscaled) == 2 and self.autoscaled[-1] == 0)
        kept = (scaled, self.loss_curve_equal, self.drained_loss_curve_close, self.readers_apart)
        lost = (self.samples_lost, self.samples_repeated, self.drained_steps_repeated, self.streams_broken)
        return False not in kept and not any(lost) and not self.failed
