"""The loss: a token-weighted sum that does not depend on how the global batch is cut."""

import pytest
import torch
from torch.nn import functional

from factories import colour_sample, tiny_model_config
from warren.data.batch import BatchPart, Cut, cut_global_batch
from warren.data.inputs import Inputs, tokenizer_from_json
from warren.data.sample import Sample, Turn
from warren.models import build_model, freeze_all_but, train_tokenizer
from warren.train.objective import Objective, to_tensors

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def objective(tiny_inputs: tuple[Inputs, str]) -> Objective:
    texts = ["USER: what colour is number 3? ASSISTANT: red green blue black"] * 4
    model = build_model(tiny_model_config(), train_tokenizer(texts, 320), seed=1)
    return Objective(model.double(), tiny_inputs[0]).double()


def parts_of(tiny_inputs: tuple[Inputs, str], world: int, micro: int) -> list[BatchPart]:
    inputs, text = tiny_inputs
    samples = [colour_sample(i) for i in range(6)]
    samples.append(Sample("text", (), (Turn("user", "what colour is number 3?"), Turn("assistant", "red")), "tests"))
    encoded = [inputs.encode_sample(s, tokenizer_from_json(text), 96) for s in samples]
    return cut_global_batch(0, 0, encoded, [], Cut.of(len(samples), world, micro), 1, 32)


def loss_and_gradient(objective: Objective, parts: list[BatchPart]) -> tuple[float, torch.Tensor]:
    objective.zero_grad()
    total = 0.0
    for part in parts:
        for micro_batch in part.micro_batches:
            share = objective(**to_tensors(micro_batch, CPU)) / part.num_supervised_tokens
            share.backward()
            total += float(share.detach())
    gradient = torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None])
    return total, gradient.clone()


@pytest.mark.parametrize(("world", "micro"), [(1, 1), (2, 3), (3, 2), (4, 7)])
def test_the_gradient_does_not_depend_on_the_cut(
    objective: Objective, tiny_inputs: tuple[Inputs, str], world: int, micro: int
) -> None:
    whole = loss_and_gradient(objective, parts_of(tiny_inputs, 1, 7))
    cut = loss_and_gradient(objective, parts_of(tiny_inputs, world, micro))
    assert cut[0] == pytest.approx(whole[0], rel=1e-10)
    assert torch.allclose(cut[1], whole[1], rtol=1e-8, atol=1e-12)


def test_the_loss_is_that_of_the_full_vocabulary_matrix(objective: Objective, tiny_inputs: tuple[Inputs, str]) -> None:
    [part] = parts_of(tiny_inputs, 1, 7)
    tensors = to_tensors(part.micro_batches[0], CPU)
    pixels = objective._normalise(tensors["pixels"])
    mask = torch.arange(tensors["input_ids"].shape[1]) < tensors["lengths"][:, None]
    logits = objective.model(input_ids=tensors["input_ids"], pixel_values=pixels, attention_mask=mask.long()).logits
    full = functional.cross_entropy(logits[:, :-1].flatten(0, 1), tensors["labels"][:, 1:].flatten(), reduction="sum")
    assert objective(**tensors).item() == pytest.approx(full.item(), rel=1e-6)


def test_every_parameter_gets_a_gradient_even_from_nothing(
    objective: Objective, tiny_inputs: tuple[Inputs, str]
) -> None:
    parts = cut_global_batch(0, 0, [], [], Cut(1, 1), 1, 32)
    objective.zero_grad()
    objective(**to_tensors(parts[0].micro_batches[0], CPU)).backward()
    freeze_all_but(objective.model, ["vision_tower", "projector", "language_model"])
    trainable = [(n, p.grad) for n, p in objective.model.named_parameters() if p.requires_grad]
    assert [n for n, gradient in trainable if gradient is None] == []
    assert [n for n, gradient in trainable if gradient is not None and gradient.any()] == []
