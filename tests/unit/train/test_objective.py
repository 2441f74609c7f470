"""The loss: a token-weighted sum that does not depend on how the global batch is cut."""

from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn import functional

from factories import LLM_FAMILIES, colour_sample, tiny_model_config
from warren.config import Resources
from warren.data.batch import BatchPart, Cut, cut_global_batch
from warren.data.model_inputs import Inputs, tokenizer_from_json
from warren.data.sample import Sample, Turn
from warren.errors import ModelError
from warren.models import build_model, freeze_all_but, train_tokenizer
from warren.train import packed_attention
from warren.train.kernels import choose_attention, compile_layers
from warren.train.objective import Objective, to_tensors

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def objective(tiny_inputs: tuple[Inputs, str]) -> Objective:
    texts = ["USER: what colour is number 3? ASSISTANT: red green blue black"] * 4
    model = build_model(tiny_model_config(), train_tokenizer(texts, 320), seed=1)
    return Objective(model.double(), tiny_inputs[0]).double()


def parts_of(
    tiny_inputs: tuple[Inputs, str], world: int, micro: int, packed_tokens: int | None = None
) -> list[BatchPart]:
    inputs, text = tiny_inputs
    samples = [colour_sample(i) for i in range(6)]
    samples.append(Sample("text", (), (Turn("user", "what colour is number 3?"), Turn("assistant", "red")), "tests"))
    encoded = [inputs.encode_sample(s, tokenizer_from_json(text), 96) for s in samples]
    return cut_global_batch(0, 0, encoded, [], Cut.of(len(samples), world, micro, packed_tokens), 1, 32)


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
    labels = torch.from_numpy(part.micro_batches[0].labels).long()
    pixels = objective.image_normalizer(tensors["pixels"], next(objective.parameters()).dtype)
    logits = objective.model(
        input_ids=tensors["input_ids"], pixel_values=pixels, attention_mask=tensors["attention_mask"]
    ).logits
    full = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    assert objective(**tensors).item() == pytest.approx(full.item(), rel=1e-6)


@pytest.mark.parametrize(("world", "micro", "packed_tokens"), [(1, 1, 96), (2, 1, 96), (1, 7, 70), (3, 2, 160)])
def test_packing_changes_nothing(
    objective: Objective, tiny_inputs: tuple[Inputs, str], world: int, micro: int, packed_tokens: int
) -> None:
    whole = loss_and_gradient(objective, parts_of(tiny_inputs, 1, 7))
    parts = parts_of(tiny_inputs, world, micro, packed_tokens)
    assert any(micro_batch.is_packed for part in parts for micro_batch in part.micro_batches)
    packed = loss_and_gradient(objective, parts)
    assert packed[0] == pytest.approx(whole[0], rel=1e-10)
    assert torch.allclose(packed[1], whole[1], rtol=1e-7, atol=1e-11)


@pytest.mark.parametrize("by_sample", [False, True])
@pytest.mark.parametrize("family", LLM_FAMILIES)
def test_every_language_model_keeps_packed_samples_apart(
    family: str, tiny_inputs: tuple[Inputs, str], by_sample: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = tiny_model_config(**LLM_FAMILIES[family])
    decoder = config.language_model.model_copy(update={"model_type": family})
    texts = ["USER: what colour is number 3? ASSISTANT: red green blue black"] * 4
    model = build_model(config.model_copy(update={"language_model": decoder}), train_tokenizer(texts, 320), seed=1)
    one = Objective(model.double(), tiny_inputs[0]).double()
    whole = loss_and_gradient(one, parts_of(tiny_inputs, 1, 7))
    if by_sample:
        assert choose_attention(model, Resources(num_workers=1, micro_batch_size=1)) == packed_attention.NAME
        again = loss_and_gradient(one, parts_of(tiny_inputs, 1, 7))
        assert again[0] == pytest.approx(whole[0], rel=1e-7)
        assert torch.allclose(again[1], whole[1], rtol=1e-4, atol=1e-6)
    packed = loss_and_gradient(one, parts_of(tiny_inputs, 1, 2, 120))
    assert packed[0] == pytest.approx(whole[0], rel=1e-7)  # Gemma's norms compute in float32
    assert torch.allclose(packed[1], whole[1], rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_layers_share_one_compilation_and_give_the_same_gradient(tiny_inputs: tuple[Inputs, str]) -> None:
    texts = ["USER: what colour is number 3? ASSISTANT: red green blue black"] * 4
    model = build_model(tiny_model_config(num_hidden_layers=8), train_tokenizer(texts, 320), seed=1)
    one = Objective(model.double(), tiny_inputs[0]).double()
    whole = loss_and_gradient(one, parts_of(tiny_inputs, 1, 7))
    choose_attention(model, Resources(num_workers=1, micro_batch_size=1))
    compile_layers(model)
    torch._dynamo.reset()
    counters.clear()
    compiled = []
    for packed_tokens in (96, 120):
        fast = loss_and_gradient(one, parts_of(tiny_inputs, 1, 2, packed_tokens))
        assert fast[0] == pytest.approx(whole[0], rel=1e-7)
        assert torch.allclose(fast[1], whole[1], rtol=1e-4, atol=1e-6)
        compiled.append(counters["stats"]["unique_graphs"])
    assert compiled == [compiled[0]] * 2  # other lengths compile nothing
    assert 0 < compiled[0] < 8  # as many as a layer has pieces, not as there are layers


def test_flash_attention_gets_packed_samples_one_behind_the_other(
    objective: Objective, tiny_inputs: tuple[Inputs, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its kernel cannot run here; the same flattened batch through SDPA must give the same loss."""
    seen = []
    language_model = objective.model.model.language_model
    hook = language_model.register_forward_pre_hook(lambda _, __, kwargs: seen.append(kwargs), with_kwargs=True)
    [part] = parts_of(tiny_inputs, 1, 7, 96)
    plain = objective(**to_tensors(part.micro_batches[0], CPU)).item()
    monkeypatch.setattr(Objective, "_is_flat", True)
    assert objective(**to_tensors(part.micro_batches[0], CPU)).item() == pytest.approx(plain, rel=1e-10)
    hook.remove()
    shapes = [kwargs["position_ids"].shape for kwargs in seen]
    assert shapes == [part.micro_batches[0].input_ids.shape, (1, part.num_tokens)]


def test_long_losses_are_taken_in_pieces(
    objective: Objective, tiny_inputs: tuple[Inputs, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = parts_of(tiny_inputs, 1, 7)
    whole = loss_and_gradient(objective, parts)
    monkeypatch.setattr("warren.train.objective._MAX_LOGITS", 0)
    monkeypatch.setattr("warren.train.objective._MIN_ROWS", 3)
    calls = []
    real = functional.linear_cross_entropy

    def counted(*arguments: Any, **options: Any) -> torch.Tensor:
        calls.append(arguments[0].shape)
        return real(*arguments, **options)

    monkeypatch.setattr(functional, "linear_cross_entropy", counted)
    pieces = loss_and_gradient(objective, parts)
    assert len(calls) == 1
    assert pieces[0] == pytest.approx(whole[0], rel=1e-7)
    assert torch.allclose(pieces[1], whole[1], rtol=1e-5, atol=1e-7)


def test_what_is_frozen_leaves_nothing_for_the_backward_pass(tiny_inputs: tuple[Inputs, str]) -> None:
    texts = ["USER: what colour is number 3? ASSISTANT: red green blue black"] * 4
    model = build_model(tiny_model_config(), train_tokenizer(texts, 320), seed=1)
    objective = Objective(model, tiny_inputs[0])
    [part] = parts_of(tiny_inputs, 1, 7)
    saved: dict[str, int] = {}
    for trainable in (("projector",), ("vision_tower", "projector", "language_model")):
        freeze_all_but(model, trainable)
        inside = [0]

        def count(tensor: torch.Tensor, inside: list[int] = inside) -> torch.Tensor:
            inside[0] += tensor.numel()
            return tensor

        tower = model.model.vision_tower
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            tower(torch.zeros(1, 3, 32, 32))
            saved[f"tower/{len(trainable)}"] = inside[0]
            objective(**to_tensors(part.micro_batches[0], CPU))
            saved[f"all/{len(trainable)}"] = inside[0]
    assert saved["tower/1"] == 0 < saved["tower/3"]
    assert saved["all/1"] < saved["all/3"]


def test_images_with_another_number_of_features_are_refused(
    objective: Objective, tiny_inputs: tuple[Inputs, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    [part] = parts_of(tiny_inputs, 1, 7)
    monkeypatch.setattr(objective, "_tokens_per_image", 9)
    with pytest.raises(ModelError, match="6 images have 96 visual features, but 9 image tokens each"):
        objective(**to_tensors(part.micro_batches[0], CPU))


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
