"""Weights as a CPU multiplies them fastest: packed once for oneDNN. MKL would read them as they lie, every time."""

from typing import Any

import torch
from torch import Tensor, nn

_TOKENS = 32
"""How many are multiplied at a time, roughly; the layout that this chooses is as fast for many more."""


class PackedLinear(nn.Module):
    """An `nn.Linear` in float32 for inference. Its weight has shape and type as before, and only oneDNN can read it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _TOKENS)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.bias = linear.bias

    def forward(self, values: Tensor) -> Tensor:
        """Return [..., out features] for [..., in features]."""
        product: Tensor = torch.ops.mkldnn._linear_pointwise(values, self.weight, self.bias, "none", [], "")
        return product


def pack_weights(model: nn.Module, embedding: nn.Module) -> None:
    """Replace a model's linear layers where packing pays: in float32 on a CPU.

    Args:
        embedding: Its weight is read by rows; a head that shares it stays as it is.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return
    # Not of its subclasses: their owners read their weights. By name, so that each is freed before the next is packed.
    for name in [name for name, part in model.named_modules() if type(part) is nn.Linear]:
        linear: Any = model.get_submodule(name)
        weight = linear.weight
        if weight.is_cpu and weight.dtype == torch.float32 and weight is not embedding.weight:
            model.set_submodule(name, PackedLinear(linear))
