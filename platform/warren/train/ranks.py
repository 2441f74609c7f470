"""The rank of this process, and the collectives that Warren itself calls."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from warren.errors import WarrenError


@dataclass(frozen=True)
class Ranks:
    """This process's place among the ranks; torch's process group must exist already."""

    rank: int
    local_rank: int
    world_size: int

    def together(self, action: Callable[[], Any]) -> list[Any]:
        """Run `action` on every rank and return all results by rank; an error on one rank is raised on all of them."""
        mine: Any
        try:
            mine = action()
        except WarrenError as error:
            mine = error
        everyone: list[Any] = [None] * self.world_size
        dist.all_gather_object(everyone, mine)
        for result in everyone:
            if isinstance(result, WarrenError):
                raise result
        return everyone

    def same_everywhere(self, value: str) -> str:
        """Return rank 0's value on every rank."""
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def total(self, values: Sequence[torch.Tensor | float], device: torch.device) -> list[float]:
        """Return the sum of each value over the ranks, in one collective; in a step, the host waits here only."""
        sums = torch.stack([torch.as_tensor(value, dtype=torch.float64, device=device) for value in values])
        dist.all_reduce(sums)
        return sums.tolist()  # type: ignore[no-any-return]
