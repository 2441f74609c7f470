"""The loss on held-out samples: a fixed set, cut like global batches and read during the first steps."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from warren.data.batch import BatchPart, Cut
from warren.data.stream import StreamSpec
from warren.train.engine import TrainingEngine
from warren.train.objective import to_tensors
from warren.train.ranks import Ranks


class Validation:
    """One rank's share of the held-out samples. All ranks have the same number of micro-batches.

    Args:
        read: Reads this rank's parts; called in a thread, so that training does not wait for it.
        every_steps: The number of steps between two losses.
    """

    def __init__(self, read: Callable[[], Sequence[BatchPart]], every_steps: int) -> None:
        self._every_steps = every_steps
        thread = ThreadPoolExecutor(1, thread_name_prefix="warren-validation")
        self._parts: Future[Sequence[BatchPart]] = thread.submit(read)
        thread.shutdown(wait=False)

    def is_due(self, num_steps_taken: int, num_steps: int) -> bool:
        """Return whether the loss is computed after that many steps."""
        return num_steps_taken % self._every_steps == 0 or num_steps_taken == num_steps

    def loss(self, engine: TrainingEngine, ranks: Ranks) -> float:
        """Return the mean loss over all supervised tokens of the set; every rank must call it at once."""
        # A set that cannot be read on one rank must not leave the others in the collective below.
        ranks.together(self._wait)
        parts = self._parts.result()
        summed = torch.zeros((), dtype=torch.float64, device=engine.device)
        for part in parts:
            for micro_batch in part.micro_batches:
                summed += engine.evaluate(to_tensors(micro_batch, engine.device))
        num_tokens = sum(part.num_supervised_tokens for part in parts)
        total: float = ranks.total([summed], engine.device)[0]
        return total / max(1, num_tokens)

    def _wait(self) -> None:
        self._parts.result()


def read_parts(stream: StreamSpec, cut: Cut, rank: int) -> list[BatchPart]:
    """Read a rank's parts of all batches of a stream."""
    reader = stream.reader(cut)
    return [parts[rank] for window in stream.reads() for parts in reader.read(window)]
