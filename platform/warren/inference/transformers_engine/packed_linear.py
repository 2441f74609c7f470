"""Linear layers whose weights are packed once into oneDNN's layout, which a CPU multiplies fastest."""

from typing import Any

import torch
from torch import Tensor, nn

from warren.compat.torch import can_pack_linear, pack_linear_weight, packed_linear

_TOKENS = 32
"""The number of tokens that the layout is chosen for; it is as fast for many more."""


class PackedLinear(nn.Module):
    """An `nn.Linear` in float32 for inference. Its weight keeps shape and type, but only oneDNN can read it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(pack_linear_weight(linear.weight, _TOKENS), requires_grad=False)
        self.bias = linear.bias

    def forward(self, values: Tensor) -> Tensor:
        """Return [..., out features] for [..., in features]."""
        return packed_linear(values, self.weight, self.bias)


def pack_weights(model: nn.Module, embedding: nn.Module) -> None:
    """Replace a model's linear layers where packing makes them faster: in float32 on a CPU.

    Args:
        model: Its layers are replaced in place.
        embedding: Its weight is read by rows, so a head that shares the weight is not packed.
    """
    if not can_pack_linear():
        return
    # Subclasses are skipped, because their owners read the weights. Names instead of modules keep no reference, so each
    # weight is freed before the next is packed.
    for name in [name for name, part in model.named_modules() if type(part) is nn.Linear]:
        linear: Any = model.get_submodule(name)
        weight = linear.weight
        if weight.is_cpu and weight.dtype == torch.float32 and weight is not embedding.weight:
            model.set_submodule(name, PackedLinear(linear))
