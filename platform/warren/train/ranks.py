"""This process among the ranks of a run, and collectives outside a step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from warren.errors import WarrenError


def set_group_timeouts(timeout_s: float) -> None:
    """Give every process group of this process the same timeout, including those of other libraries.

    torch has no public call for it. A group of `new_group` does not inherit the default group's timeout, so DeepSpeed's
    groups would end a run after ten minutes on GPUs, for example while one rank writes a checkpoint.
    """
    for group in list(distributed_c10d._world.pg_map):
        distributed_c10d._set_pg_timeout(timedelta(seconds=timeout_s), group)


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
        """Return the sum of each value over the ranks, with one collective: a step's only wait for the device."""
        sums = torch.stack([torch.as_tensor(value, dtype=torch.float64, device=device) for value in values])
        dist.all_reduce(sums)
        return sums.tolist()  # type: ignore[no-any-return]
