"""Packed weights: the same products, the same parameters, and only where packing pays."""

import pytest
import torch
from torch import nn

from warren.inference.transformers_engine.packed_linear import PackedLinear, pack_weights


class Tied(nn.Module):
    """A head that shares the embedding's weight, beside what else a model has."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 24)
        self.layers = nn.ModuleList([nn.Linear(24, 24), nn.Linear(24, 24, bias=False)])
        self.attention = nn.MultiheadAttention(24, 2)  # reads the weight of its own linear layer
        self.in_bf16 = nn.Linear(24, 24, dtype=torch.bfloat16)
        self.head = nn.Linear(24, 40, bias=False)
        self.head.weight = self.embed.weight


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (33,), (1, 300), (2, 5)])
def test_a_packed_product_is_the_plain_one(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(48, 80, bias=bias)
    values = torch.randn(*shape, 48)
    with torch.inference_mode():
        assert torch.allclose(PackedLinear(linear)(values), linear(values), rtol=1e-5, atol=1e-6)
        turned = torch.randn(48, 9).t()  # not contiguous
        assert torch.allclose(PackedLinear(linear)(turned), linear(turned), rtol=1e-5, atol=1e-6)


def test_only_what_packing_helps_is_replaced() -> None:
    model = Tied()
    size = sum(parameter.numel() for parameter in model.parameters())
    for _ in range(2):  # a second time changes nothing
        pack_weights(model, model.embed)
        assert [name for name, part in model.named_modules() if isinstance(part, PackedLinear)] == [
            "layers.0",
            "layers.1",
        ]
    assert model.head.weight is model.embed.weight
    assert sum(parameter.numel() for parameter in model.parameters()) == size
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
