"""LoRA through the real engine: every ZeRO stage, resumed, and on another number of ranks."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from factories import colour_sample, tiny_model_config, tiny_stage
from ranks import run_on_ranks
from warren.config import LoraConfig, Resources, ZeroStage
from warren.data.batch import BatchPart, Cut, cut_global_batch
from warren.data.model_inputs import tokenizer_from_json
from warren.models import add_adapters, build_model, freeze_all_but, inputs_of, train_tokenizer
from warren.models.adapters import is_adapter
from warren.train.engine import TrainingEngine, to_universal
from warren.train.objective import Objective, to_tensors

LORA = LoraConfig(rank=4, alpha=8, dropout=0.0)
STAGE = tiny_stage(
    "d@v1",
    trainable=("projector", "language_model"),
    lora=LORA,
    learning_rate=1e-2,
    projector_learning_rate=3e-3,
    weight_decay=0.1,
)
ZERO_STAGES: tuple[ZeroStage, ...] = (0, 2, 3)
STEPS, SAVED = 6, 3


class Found(NamedTuple):
    start: dict[str, torch.Tensor]
    losses: list[float]
    state: dict[str, torch.Tensor]
    resumed: list[float]
    resumed_state: dict[str, torch.Tensor]


class Rank:
    """One rank that trains the tiny model with adapters on the same global batch at every step."""

    def __init__(self, rank: int, world_size: int, zero_stage: ZeroStage, **options: Any) -> None:
        config = tiny_model_config()
        tokenizer = train_tokenizer(["USER: what colour is number 3? ASSISTANT: red green blue black"] * 4, 320)
        inputs = inputs_of(config, tokenizer)
        encoded = [inputs.encode_sample(colour_sample(i), tokenizer_from_json(tokenizer.json), 96) for i in range(8)]
        cut = Cut.of(8, world_size, 2)
        self.part: BatchPart = cut_global_batch(0, 0, encoded, [], cut, tokenizer.pad_token_id, 32)[rank]
        model = build_model(config, tokenizer, seed=1)
        add_adapters(model, LORA, seed=1)
        freeze_all_but(model, STAGE.trainable)
        resources = Resources(num_workers=world_size, zero_stage=zero_stage, micro_batch_size=2)
        self.engine = TrainingEngine(Objective(model.train(), inputs), STAGE, resources, cut, STEPS, **options)

    def train(self, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            shares = []
            for micro in self.part.micro_batches:
                tensors = to_tensors(micro, self.engine.device)
                is_last = micro is self.part.micro_batches[-1]
                shares.append(self.engine.forward_backward(tensors, self.part.num_supervised_tokens, is_last))
            self.engine.step()
            total = torch.stack(shares).sum()
            torch.distributed.all_reduce(total)
            losses.append(float(total))
        return losses

    def state(self) -> dict[str, torch.Tensor]:
        return {name: tensor.clone() for name, tensor in self.engine.model_state().items()}


def broken_off_and_resumed(rank: int, world_size: int, folder: Path) -> dict[int, Any]:
    results: dict[int, Any] = {}
    for zero_stage in ZERO_STAGES:
        one = Rank(rank, world_size, zero_stage)
        start = one.state()
        losses = one.train(SAVED)
        one.engine.save(folder / str(zero_stage))
        losses += one.train(STEPS - SAVED)
        torch.distributed.barrier()
        other = Rank(rank, world_size, zero_stage)
        other.engine.load(folder / str(zero_stage))
        resumed = other.train(STEPS - SAVED)
        results[zero_stage] = Found(start, losses, one.state(), resumed, other.state())
    return results


def on_another_number_of_ranks(rank: int, world_size: int, folder: Path) -> dict[int, Any]:
    results: dict[int, Any] = {}
    for zero_stage in ZERO_STAGES:
        universal = zero_stage > 0
        if universal and rank == 0:
            to_universal(folder / str(zero_stage))
        torch.distributed.barrier()
        one = Rank(rank, world_size, zero_stage, universal=universal)
        one.engine.load(folder / str(zero_stage))
        results[zero_stage] = (one.train(STEPS - SAVED), one.state())
    return results


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def on_two_ranks(folder: Path) -> dict[int, Found]:
    return run_on_ranks(2, broken_off_and_resumed, folder)[0]


@pytest.fixture(scope="module")
def then_on_one(on_two_ranks: dict[int, Found], folder: Path) -> dict[int, Any]:
    return run_on_ranks(1, on_another_number_of_ranks, folder)[0]


@pytest.mark.parametrize("zero_stage", ZERO_STAGES)
def test_only_adapters_and_the_projector_move(on_two_ranks: dict[int, Found], zero_stage: int) -> None:
    found = on_two_ranks[zero_stage]
    assert found.losses[-1] < found.losses[0]
    moved = {name for name, tensor in found.state.items() if not torch.equal(tensor, found.start[name])}
    assert moved == {n for n in found.start if is_adapter(n) or n.startswith("model.multi_modal_projector.")}


@pytest.mark.parametrize("zero_stage", ZERO_STAGES)
def test_a_resumed_run_is_the_same_bit_by_bit(on_two_ranks: dict[int, Found], zero_stage: int) -> None:
    found = on_two_ranks[zero_stage]
    assert found.resumed == found.losses[SAVED:]
    assert all(torch.equal(found.resumed_state[name], tensor) for name, tensor in found.state.items())


@pytest.mark.parametrize("zero_stage", ZERO_STAGES)
def test_it_goes_on_with_another_number_of_ranks(
    on_two_ranks: dict[int, Found], then_on_one: dict[int, Any], zero_stage: int
) -> None:
    found, (losses, state) = on_two_ranks[zero_stage], then_on_one[zero_stage]
    assert losses == pytest.approx(found.losses[SAVED:], rel=1e-4)
    assert all(torch.allclose(state[name], tensor, atol=1e-4) for name, tensor in found.state.items())
