"""Errors that say which settings to change when memory runs out."""

from collections.abc import Iterator
from contextlib import contextmanager

from warren.compat.torch import is_out_of_memory
from warren.config import Resources
from warren.data.batch import BatchPart
from warren.errors import TrainingError


@contextmanager
def memory_explained(resources: Resources, part: BatchPart) -> Iterator[None]:
    """Turn a failed allocation inside into an error with advice.

    Raises:
        TrainingError: Memory ran out; the message says at which step, and what to change.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(_advice(resources, part, error)) from None


def _advice(resources: Resources, part: BatchPart, error: Exception) -> str:
    largest = max(micro_batch.input_ids.size for micro_batch in part.micro_batches)
    steps = []
    if resources.micro_batch_size > 1:
        steps.append(f"resources.micro_batch_size={resources.micro_batch_size // 2}")
    if not resources.gradient_checkpointing:
        steps.append("resources.gradient_checkpointing=true")
    if resources.zero_stage < 3:
        steps.append(f"resources.zero_stage={resources.zero_stage + 1} (a new run: another stage is not resumed)")
    steps.append("more workers")
    first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"out of memory at step {part.step} with micro-batches of up to {largest} tokens: {first_line}. None of these "
        f"changes the loss curve: {', or '.join(steps)}"
    )
