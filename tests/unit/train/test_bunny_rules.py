"""Bunny's rules of what trains, how fast, and at what cost in memory (reference: its paper and training scripts)."""

from typing import Any

import pytest
import torch
from torch import nn

from factories import colour_sample, tiny_model_config, tiny_stage
from warren.config import LoraConfig, StageConfig
from warren.data.batch import Cut, cut_global_batch
from warren.data.model_inputs import tokenizer_from_json
from warren.models import add_adapters, build_model, freeze_all_but, inputs_of, train_tokenizer
from warren.models.adapters import is_adapter
from warren.models.vlm import recompute_activations
from warren.train.objective import Objective, to_tensors
from warren.train.optimization import parameter_groups

LORA = LoraConfig(rank=4, alpha=8, dropout=0.0)
TOWER = "model.vision_tower.encoder.layers.0.layer_norm1"  # inside a block: what wraps a block is not run again
DECODER = "model.language_model.layers.0.input_layernorm"
STAGES = {
    "stage 1": tiny_stage("d@v1", trainable=("projector",)),
    "full": tiny_stage("d@v1", trainable=("projector", "language_model")),
    "lora": tiny_stage("d@v1", trainable=("projector", "language_model"), lora=LORA),
    "everything": tiny_stage("d@v1", trainable=("vision_tower", "projector", "language_model")),
}


class Trained:
    """One forward and backward of a stage, and what it did."""

    def __init__(self, stage: StageConfig, gradient_checkpointing: bool) -> None:
        config = tiny_model_config()
        tokenizer = train_tokenizer(["USER: what colour is number 3? ASSISTANT: red green blue black"] * 4, 320)
        inputs = inputs_of(config, tokenizer)
        self.model: nn.Module = build_model(config, tokenizer, seed=1)
        if stage.lora is not None:
            add_adapters(self.model, stage.lora, seed=1)
        freeze_all_but(self.model, stage.trainable)
        if gradient_checkpointing:
            recompute_activations(self.model)
        self.runs = dict.fromkeys((TOWER, DECODER), 0)
        self.has_graph: dict[str, bool] = {}
        for name in self.runs:
            module = self.model.get_submodule(name)
            module.register_forward_pre_hook(lambda *_, name=name: self._count(name))
            module.register_forward_hook(lambda *given, name=name: self._look(name, given[-1]))
        encoded = [inputs.encode_sample(colour_sample(i), tokenizer_from_json(tokenizer.json), 96) for i in range(4)]
        [part] = cut_global_batch(0, 0, encoded, [], Cut(1, 1), tokenizer.pad_token_id, 32)
        objective = Objective(self.model.train(), inputs)
        loss = objective(**to_tensors(part.micro_batches[0], torch.device("cpu")))
        loss.backward()
        self.loss = loss.detach()
        self.gradients = {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}

    def _count(self, name: str) -> None:
        self.runs[name] += 1

    def _look(self, name: str, output: Any) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        self.has_graph[name] = tensor.requires_grad


@pytest.fixture(params=STAGES, scope="module")
def both_ways(request: pytest.FixtureRequest) -> tuple[str, Trained, Trained]:
    stage = STAGES[request.param]
    return request.param, Trained(stage, False), Trained(stage, True)


def test_gradient_checkpointing_changes_memory_and_nothing_else(both_ways: tuple[str, Trained, Trained]) -> None:
    _, plain, checkpointed = both_ways
    assert torch.equal(checkpointed.loss, plain.loss)
    assert checkpointed.gradients.keys() == plain.gradients.keys()
    assert all(torch.allclose(checkpointed.gradients[n], g, rtol=1e-5, atol=1e-7) for n, g in plain.gradients.items())
    assert plain.runs[DECODER] == 1
    assert checkpointed.runs[DECODER] == 2  # once more in the backward pass


def test_a_frozen_tower_has_no_graph_and_is_never_run_again(both_ways: tuple[str, Trained, Trained]) -> None:
    name, plain, checkpointed = both_ways
    trains = "vision_tower" in STAGES[name].trainable
    assert plain.has_graph[TOWER] == checkpointed.has_graph[TOWER] == trains
    assert checkpointed.runs[TOWER] == (2 if trains else 1)


def test_exactly_what_the_stage_names_gets_a_gradient(both_ways: tuple[str, Trained, Trained]) -> None:
    name, plain, _ = both_ways
    expected = {n for n, parameter in plain.model.named_parameters() if parameter.requires_grad}
    assert plain.gradients.keys() == expected
    if name == "lora":
        assert all(is_adapter(n) or n.startswith("model.multi_modal_projector.") for n in expected)


def test_adapters_take_the_stages_rate_and_decay_while_other_parts_have_their_own() -> None:
    stage = tiny_stage(
        "d@v1",
        trainable=("vision_tower", "projector", "language_model"),
        lora=LORA,
        learning_rate=2e-4,
        projector_learning_rate=2e-5,
        vision_tower_learning_rate=1e-6,
        weight_decay=0.1,
    )
    model = Trained(stage, False).model
    groups = {(g["lr"], g["weight_decay"]): {id(p) for p in g["params"]} for g in parameter_groups(model, stage)}
    assert groups.keys() == {(2e-4, 0.1), (2e-5, 0.1), (2e-5, 0.0), (1e-6, 0.1), (1e-6, 0.0)}
    assert groups[2e-4, 0.1] == {id(p) for name, p in model.named_parameters() if is_adapter(name)}


def test_biases_and_norms_of_every_part_do_not_decay() -> None:
    stage = STAGES["everything"].model_copy(update={"weight_decay": 0.1})
    model = Trained(stage, False).model
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    still = {names[id(p)] for g in parameter_groups(model, stage) if g["weight_decay"] == 0.0 for p in g["params"]}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert still == {name for name in trained if name.endswith(".bias") or "norm" in name}
