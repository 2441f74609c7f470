"""PyTorch's process groups, oneDNN's packed products, and what torch says in text only."""

import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed import distributed_c10d

_OUT_OF_MEMORY = ("DefaultCPUAllocator", "can't allocate memory", "not enough memory")


def set_group_timeouts(timeout_s: float) -> None:
    """Give every process group of this process, other libraries' included, the same timeout.

    Why: What `new_group` makes does not inherit the default group's timeout. DeepSpeed's groups would end a run after
        ten minutes on GPUs, for example while one rank writes a checkpoint. torch 2.13 has no public call for it.
    Upstream: `_set_pg_timeout` and `_world.pg_map` in `torch/distributed/distributed_c10d.py` of torch 2.13; DeepSpeed
        takes no timeout for its groups (https://github.com/deepspeedai/DeepSpeed/issues/2927); a public
        `torch.distributed.set_timeout` is proposed in https://github.com/pytorch/pytorch/pull/187387.
    If it breaks: Use `torch.distributed.set_timeout` where torch has it.
    """
    for group in list(distributed_c10d._world.pg_map):
        distributed_c10d._set_pg_timeout(timedelta(seconds=timeout_s), group)


def can_pack_linear() -> bool:
    """Tell whether torch was built with the products that `pack_linear_weight` prepares for."""
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def pack_linear_weight(weight: Tensor, num_tokens: int) -> Tensor:
    """Return a linear layer's weight in the layout in which a CPU multiplies it fastest. Only `packed_linear` reads it.

    Why: MKL reads weights as they lie, every time; oneDNN's packed products are faster for a few tokens, as decoding
        has. torch packs weights only for models that it has compiled and frozen.
    Upstream: `mkldnn::_reorder_linear_weight` in `aten/src/ATen/native/mkldnn/MKLDNNConversions.cpp`, from
        https://github.com/pytorch/pytorch/pull/89109; a public `pack_linear_weights` was proposed in
        https://github.com/pytorch/pytorch/pull/139387.
    If it breaks: Let `can_pack_linear` return False: answers stay right, and the CPU engine is slower.

    Args:
        weight: float32 [out features, in features], on a CPU.
        num_tokens: How many tokens are multiplied at a time, roughly.

    Returns:
        Of the same shape and type, with a layout of oneDNN's.
    """
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), num_tokens)
    return packed


def packed_linear(values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return [..., out features] for [..., in features] and a weight that `pack_linear_weight` packed.

    Why: See `pack_linear_weight`.
    Upstream: `mkldnn::_linear_pointwise` in `aten/src/ATen/native/mkldnn/Linear.cpp`, which torch's own compiler calls
        (`torch/_inductor/fx_passes/mkldnn_fusion.py` of torch 2.13).
    If it breaks: See `pack_linear_weight`.
    """
    product: Tensor = torch.ops.mkldnn._linear_pointwise(values, weight, bias, "none", [], "")
    return product


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an allocation failed, on a GPU or in the host's memory.

    Why: On a CPU torch raises a plain `RuntimeError`, and only its text says so.
    Upstream: `c10/core/impl/alloc_cpu.cpp`; the text is of https://github.com/pytorch/pytorch/pull/20618.
    If it breaks: A run out of memory ends with torch's own text and without advice. Match the new text.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in _OUT_OF_MEMORY)


def tensor_of(array: np.ndarray) -> Tensor:
    """Return a tensor that shares an array's memory, also where the array is read-only; nobody may write to it.

    Why: Arrays that came through Ray's object store are read-only. torch warns, and warnings are errors in the tests.
    Upstream: `torch/csrc/utils/tensor_numpy.cpp`; the warning is of https://github.com/pytorch/pytorch/pull/33615, and
        Ray drops it in the same way (https://github.com/ray-project/ray/pull/29808).
    If it breaks: Match the warning's new text.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(np.ascontiguousarray(array))


def replace_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Have a module compute something else when it is called, with its hooks around it as before.

    Why: Under ZeRO-3 a layer's matrix is whole only between the hooks that DeepSpeed puts around the layer's call, so
        the loss must be computed inside the call of the language model's head.
    Upstream: `Module._call_impl` in `torch/nn/modules/module.py` of torch 2.13 looks `forward` up on the object; that
        ZeRO-3 needs the call is what https://github.com/huggingface/trl/pull/5873 ran into.
    If it breaks: Put a module of Warren's own around the head's parameters, and rename its weights in checkpoints.
    """
    module.forward = forward  # type: ignore[method-assign]


def let_padding_row_train(embeddings: nn.Embedding) -> None:
    """Let the row of the padding token train like the others, in place.

    Why: Where padding and the end of an answer are one token, torch would never train its embedding.
    Upstream: `padding_idx` of `torch.nn.Embedding`, which its forward passes on at every call (torch 2.13).
    If it breaks: Make a new `nn.Embedding` without `padding_idx` around the same weight.
    """
    embeddings.padding_idx = None
