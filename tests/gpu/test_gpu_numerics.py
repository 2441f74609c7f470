"""Loss, gradient and optimizer step on a device, beside those of a CPU in float32; and Bunny's own logits."""

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn

from bunny_oracle import Compared, checkpoint
from factories import LLM_FAMILIES, colour_sample, text_sample, tiny_model_config, tiny_stage
from gpu_devices import Record
from warren.config import Resources
from warren.data.batch import BatchPart, Cut, cut_global_batch
from warren.data.model_inputs import Inputs, tokenizer_from_json
from warren.models import build_model, train_tokenizer
from warren.train.kernels import choose_attention, compile_layers, has_fused_optimizer
from warren.train.objective import Objective, to_tensors
from warren.train.optimization import optimizer

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BOUNDS = {"fp32": (1e-3, 0.9999), "bf16": (2e-2, 0.98), "fp16": (5e-3, 0.999)}
"""How far a loss may be from the expected one, and how parallel the gradients must be. cuDNN rounds to TF32."""
TEXTS = ["USER: what colour is number 3? ASSISTANT: red green blue black"] * 4


def build(family: str) -> Any:
    config = tiny_model_config(**LLM_FAMILIES[family])
    decoder = config.language_model.model_copy(update={"model_type": family})
    return build_model(config.model_copy(update={"language_model": decoder}), train_tokenizer(TEXTS, 320), seed=1)


def batch(tiny_inputs: tuple[Inputs, str], packed: bool) -> BatchPart:
    inputs, text = tiny_inputs
    samples = [*(colour_sample(number) for number in range(6)), text_sample(1)]
    encoded = [inputs.encode_sample(sample, tokenizer_from_json(text), 96) for sample in samples]
    cut = Cut.of(len(samples), 1, 2 if packed else 7, 120 if packed else None)
    [part] = cut_global_batch(0, 0, encoded, [], cut, 1, 32)
    return part


def loss_and_gradient(objective: Objective, part: BatchPart) -> tuple[float, torch.Tensor]:
    device, total = next(objective.parameters()).device, 0.0
    for micro_batch in part.micro_batches:
        share = objective(**to_tensors(micro_batch, device)) / part.num_supervised_tokens
        share.backward()
        total += float(share.detach())
    gradients = [p.grad.flatten().float().cpu() for p in objective.parameters() if p.grad is not None]
    return total, torch.cat(gradients)


def compare(
    model: Any, tiny_inputs: tuple[Inputs, str], device: str, precision: Precision, packed: bool, compiled: bool = False
) -> tuple[str, float, float]:
    """Return the attention that was chosen, the loss' relative difference, and the gradients' cosine."""
    expected = loss_and_gradient(Objective(model, tiny_inputs[0]), batch(tiny_inputs, packed=False))
    model.zero_grad()
    objective = Objective(model, tiny_inputs[0]).to(device, DTYPES[precision])
    attention = choose_attention(model, Resources(num_workers=1, precision=precision, packing=packed))
    if compiled:
        compile_layers(model)
    loss, gradient = loss_and_gradient(objective, batch(tiny_inputs, packed))
    cosine = float(nn.functional.cosine_similarity(gradient, expected[1], dim=0))
    return attention, abs(loss - expected[0]) / expected[0], cosine


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_loss_and_gradient_are_those_of_a_cpu_in_float32(
    device: str, precision: Precision, packed: bool, tiny_inputs: tuple[Inputs, str], record: Record
) -> None:
    """With flash attention where its package is installed and the precision is bf16."""
    compared = {family: compare(build(family), tiny_inputs, device, precision, packed) for family in LLM_FAMILIES}
    attentions = ", ".join(sorted({attention for attention, _, _ in compared.values()}))
    loss = max(difference for _, difference, _ in compared.values())
    cosine = min(cosine for _, _, cosine in compared.values())
    name = f"gradient, {precision}, {'packed' if packed else 'padded'}"
    record(name, attention=attentions, **{"loss, relative difference": loss, "gradient, cosine": cosine})
    largest, least = BOUNDS[precision]
    assert loss < largest, compared
    assert cosine > least, compared


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_layers_give_the_same_loss_and_gradient(
    device: str, tiny_inputs: tuple[Inputs, str], record: Record
) -> None:
    if device == "cpu":
        pytest.skip("tests/unit/train/test_objective.py compiles on a CPU")
    _, loss, cosine = compare(build("qwen2"), tiny_inputs, device, "bf16", packed=True, compiled=True)
    record("gradient, bf16, compiled", **{"loss, relative difference": loss, "gradient, cosine": cosine})
    assert loss < BOUNDS["bf16"][0]
    assert cosine > BOUNDS["bf16"][1]


def test_an_optimizer_step_is_that_of_a_cpu(device: str, record: Record) -> None:
    """AdamW is one fused kernel on a GPU. Both sides step with the same gradients."""
    stage = tiny_stage("d@v1", weight_decay=0.1)
    here, there = build("qwen2"), build("qwen2").to(device)
    steps = [optimizer(here, stage), optimizer(there, stage)]
    drawn = torch.Generator().manual_seed(1)
    for _ in range(3):
        for one, other in zip(here.parameters(), there.parameters(), strict=True):
            one.grad = torch.randn(one.shape, generator=drawn)
            other.grad = one.grad.to(device)
        for step in steps:
            step.step()
    pairs = zip(here.parameters(), there.parameters(), strict=True)
    largest = max(float((one - other.cpu()).detach().abs().max()) for one, other in pairs)
    kind = "fused" if has_fused_optimizer() and device == "cuda" else "plain"
    record("three steps of AdamW", **{"kernel": kind, "weights, largest difference": largest})
    assert largest < 1e-6


def test_logits_are_those_that_bunny_computed(device: str, tmp_path: Path, record: Record) -> None:
    """Bunny's own code wrote them, on a CPU in float32."""
    compared = Compared("bunny-qwen2", tmp_path, vision_tower=checkpoint("towers/siglip-tiny"))
    model: Any = compared.model
    model.to(device)
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        logits = model(
            input_ids=compared.ids("single_input_ids").to(device), pixel_values=compared.pixels(0).to(device)
        ).logits[0, :, : compared.num_tokens]
    largest = float((logits.cpu() - torch.from_numpy(compared.expected["single_logits"])).abs().max())
    record("Bunny's logits, fp32", **{"logits, largest difference": largest})
    assert largest < 1e-3
