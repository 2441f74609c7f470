"""Attention of single tokens on a CPU: as torch computes it, row by row, however many threads share the rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from warren.inference.transformers_engine.decode_kernel import attend_rows, can_attend

CAPACITY = 40


def random_rows(lengths: list[int], num_heads: int, group: int, dim: int) -> tuple[Tensor, Tensor, Tensor, np.ndarray]:
    generator = torch.Generator().manual_seed(sum(lengths))
    rows = len(lengths)
    query = torch.randn(num_heads * group, rows, dim, generator=generator).transpose(0, 1)  # as a layer has it
    keys, values = (torch.randn(rows + 2, num_heads, CAPACITY, d, generator=generator)[1:-1] for d in (dim, dim + 3))
    return query, keys, values, np.array(lengths)


def by_torch(query: Tensor, keys: Tensor, values: Tensor, lengths: np.ndarray, scaling: float | None) -> Tensor:
    group = query.shape[1] // keys.shape[1]
    rows = []
    for asked, key, value, length in zip(query, keys, values, lengths, strict=True):
        keys_read, values_read = (each[:, :length].repeat_interleave(group, 0) for each in (key, value))
        attended = functional.scaled_dot_product_attention(asked[:, None], keys_read, values_read, scale=scaling)
        rows.append(attended[:, 0])
    return torch.stack(rows)


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, CAPACITY), min_size=1, max_size=7),
    num_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    dim=st.integers(1, 20),
    scaling=st.sampled_from([None, 0.3]),
    threads=st.sampled_from([1, 2, 3]),
)
def test_rows_attend_as_torch_computes_it(
    lengths: list[int], num_heads: int, group: int, dim: int, scaling: float | None, threads: int
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        arguments = random_rows(lengths, num_heads, group, dim)
        output = attend_rows(*arguments, scaling)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(output, by_torch(*arguments, scaling), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["keys", "values", "beyond"])
def test_what_is_not_finite_stays_so_in_its_own_row(bad: float, where: str) -> None:
    query, keys, values, lengths = random_rows([9, 4, 11], 2, 2, 8)
    clean = attend_rows(query, keys, values, lengths)
    (values if where == "values" else keys)[1, :, 5 if where == "beyond" else 2] = bad
    output = attend_rows(query, keys, values, lengths)
    assert torch.equal(output[[0, 2]], clean[[0, 2]])
    if where == "beyond":  # what an earlier request left behind is not read at all
        assert torch.equal(output, clean)
    else:
        assert not torch.isfinite(output[1].sum())


def test_it_is_for_float32_on_a_cpu_only() -> None:
    assert can_attend(torch.zeros(1))
    assert not can_attend(torch.zeros(1, dtype=torch.bfloat16))
    assert not can_attend(torch.zeros(1, device="meta"))
