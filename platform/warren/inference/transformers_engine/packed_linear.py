"""Weights as a CPU multiplies them fastest: packed once for oneDNN. MKL would read them as they lie, every time."""

from typing import Any

import torch
from torch import Tensor, nn

from warren.compat.torch import can_pack_linear, pack_linear_weight, packed_linear

_TOKENS = 32
"""How many are multiplied at a time, roughly; the layout that this chooses is as fast for many more."""


class PackedLinear(nn.Module):
    """An `nn.Linear` in float32 for inference. Its weight has shape and type as before, and only oneDNN can read it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(pack_linear_weight(linear.weight, _TOKENS), requires_grad=False)
        self.bias = linear.bias

    def forward(self, values: Tensor) -> Tensor:
        """Return [..., out features] for [..., in features]."""
        return packed_linear(values, self.weight, self.bias)


def pack_weights(model: nn.Module, embedding: nn.Module) -> None:
    """Replace a model's linear layers where packing pays: in float32 on a CPU.

    Args:
        embedding: Its weight is read by rows; a head that shares it stays as it is.
    """
    if not can_pack_linear():
        return
    # Not of its subclasses: their owners read their weights. By name, so that each is freed before the next is packed.
    for name in [name for name, part in model.named_modules() if type(part) is nn.Linear]:
        linear: Any = model.get_submodule(name)
        weight = linear.weight
        if weight.is_cpu and weight.dtype == torch.float32 and weight is not embedding.weight:
            model.set_submodule(name, PackedLinear(linear))
