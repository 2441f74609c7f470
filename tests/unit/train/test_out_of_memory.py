"""Memory that does not suffice is one line: at which step, and what to change."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from factories import colour_sample
from warren.config import Resources
from warren.data.batch import BatchPart, Cut, cut_global_batch
from warren.data.model_inputs import Inputs, tokenizer_from_json
from warren.errors import TrainingError
from warren.train.out_of_memory import memory_explained


@pytest.fixture
def part(tiny_inputs: tuple[Inputs, str]) -> BatchPart:
    inputs, tokenizer = tiny_inputs
    encoded = [inputs.encode_sample(colour_sample(i), tokenizer_from_json(tokenizer), 96) for i in range(4)]
    return cut_global_batch(7, 0, encoded, [], Cut.of(4, 1, 4), inputs.tokens.pad_token_id, 32)[0]


def ask_torch() -> None:
    torch.empty(1 << 50)


def ask_numpy() -> None:
    np.ones(1 << 50)


def end_as_a_gpu_does() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation")


@pytest.mark.parametrize(
    ("allocate", "reason"),
    [
        (ask_torch, "tried to allocate 4503599627370496 bytes"),
        (ask_numpy, "Unable to allocate 8.00 PiB"),
        (end_as_a_gpu_does, r"CUDA out of memory\. Tried to allocate 2\.00 GiB\.\."),
    ],
)
def test_every_kind_of_memory_is_explained_in_one_line(
    part: BatchPart, allocate: Callable[[], None], reason: str
) -> None:
    resources = Resources(num_workers=2, micro_batch_size=4, zero_stage=2)
    with pytest.raises(TrainingError, match=reason) as explained, memory_explained(resources, part):
        allocate()
    largest = part.micro_batches[0].input_ids.size
    message = str(explained.value)
    assert message.startswith(f"out of memory at step 7 with micro-batches of up to {largest} tokens: ")
    assert message.endswith(
        "resources.micro_batch_size=2, or resources.gradient_checkpointing=true, or "
        "resources.zero_stage=3 (a new run: another stage is not resumed), or more workers"
    )
    assert "\n" not in message


def test_only_what_can_still_be_changed_is_advised(part: BatchPart) -> None:
    frugal = Resources(num_workers=2, micro_batch_size=1, zero_stage=3, gradient_checkpointing=True)
    with pytest.raises(TrainingError, match=r"changes the loss curve: more workers$"), memory_explained(frugal, part):
        ask_torch()


def test_other_errors_pass(part: BatchPart) -> None:
    with (
        pytest.raises(RuntimeError, match="shapes cannot be multiplied"),
        memory_explained(Resources(num_workers=1), part),
    ):
        torch.ones(2, 3) @ torch.ones(2, 3)
