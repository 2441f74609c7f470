"""Contracts with PyTorch: what `warren.compat.torch` takes for granted."""

import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import distributed_c10d

from library_contracts import changed, parameters
from warren.compat.torch import (
    can_pack_linear,
    is_out_of_memory,
    let_padding_row_train,
    pack_linear_weight,
    packed_linear,
    replace_forward,
    set_group_timeouts,
    tensor_of,
)


def test_every_process_group_takes_a_new_timeout(tmp_path: Path) -> None:
    assert parameters(distributed_c10d._set_pg_timeout) == ["timeout", "group"], changed(
        set_group_timeouts, "_set_pg_timeout takes other arguments"
    )
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        dist.new_group([0])
        groups: list[Any] = list(distributed_c10d._world.pg_map)
        assert len(groups) == 2, changed(set_group_timeouts, "_world.pg_map does not hold every group any more")
        set_group_timeouts(77)
        for group in groups:
            timeout = group._get_backend(torch.device("cpu")).options._timeout
            assert timeout == timedelta(seconds=77), changed(set_group_timeouts, f"a group's timeout is {timeout}")
    finally:
        dist.destroy_process_group()


@pytest.mark.skipif(not can_pack_linear(), reason="this torch was built without oneDNN")
def test_packed_products_are_the_products() -> None:
    available: Any = torch.backends.mkldnn.is_available
    assert available() == can_pack_linear()
    linear, values = nn.Linear(48, 24), torch.randn(3, 5, 48)
    packed = pack_linear_weight(linear.weight, 32)
    assert packed.shape == linear.weight.shape, changed(pack_linear_weight, f"packed, it has shape {packed.shape}")
    with torch.no_grad():
        product = packed_linear(values, packed, linear.bias)
        assert torch.allclose(product, linear(values), rtol=1e-5, atol=1e-6), changed(packed_linear, "they differ")


def test_an_allocation_that_fails_says_so() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value), changed(is_out_of_memory, f"torch says {raised.value} now")
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    assert not is_out_of_memory(ValueError("not enough memory"))


def test_read_only_arrays_become_tensors_without_a_warning() -> None:
    array = np.arange(4)
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            tensor = tensor_of(array)
        except UserWarning as warning:
            pytest.fail(changed(tensor_of, f"torch warns: {warning}"))
    assert tensor.data_ptr() == array.ctypes.data, changed(tensor_of, "from_numpy copies read-only arrays now")


def test_a_replaced_forward_runs_between_the_modules_hooks() -> None:
    module, order = nn.Linear(2, 2), list[str]()
    module.register_forward_pre_hook(lambda *_: order.append("before"))
    module.register_forward_hook(lambda *_: order.append("after"))

    def forward(value: torch.Tensor, scale: float) -> torch.Tensor:
        order.append("forward")
        return value * scale

    replace_forward(module, forward)
    assert torch.equal(module(torch.ones(2), 3.0), torch.full((2,), 3.0)), changed(replace_forward, "it is not called")
    assert order == ["before", "forward", "after"], changed(replace_forward, f"hooks run as {order}")


def test_the_padding_tokens_row_has_a_gradient() -> None:
    embeddings = nn.Embedding(3, 2, padding_idx=1)
    let_padding_row_train(embeddings)
    embeddings(torch.tensor([1])).sum().backward()
    assert embeddings.weight.grad is not None
    assert embeddings.weight.grad[1].tolist() == [1.0, 1.0], changed(
        let_padding_row_train, "its gradient is still zero"
    )
