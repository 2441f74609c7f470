"""Attention of one new token per row on a CPU, compiled by numba on first use.

Decoding reads every key and value once, so it is bound by memory bandwidth. torch's kernel multiplies one row of one
head at a time and reads all rows to the longest row's length; this kernel reads each row to its own length.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from torch import Tensor


def can_attend(query: Tensor) -> bool:
    """Return whether the kernel takes queries like these: float32 on a CPU."""
    return query.is_cpu and query.dtype == torch.float32


def attend_rows(
    query: Tensor, keys: Tensor, values: Tensor, lengths: np.ndarray, scaling: float | None = None
) -> Tensor:
    """Attend from one token of each row to the row's own keys, on as many threads as torch has.

    Shape letters: R rows, Q query heads, H key/value heads, C capacity, D head dimension, V of the values.

    Args:
        query: float32 [R, Q, D].
        keys: float32 [R, H, C, D], contiguous.
        values: float32 [R, H, C, V], contiguous.
        lengths: int64 [R], how many of its keys each row reads; at least one.
        scaling: Of the scores; None for 1/√D.

    Returns:
        float32 [R, Q, V].
    """
    rows, num_heads, dim = query.shape
    output = query.new_empty(rows, num_heads, values.shape[-1])
    scale = np.float32(dim**-0.5 if scaling is None else scaling)
    arrays = [*(tensor.numpy() for tensor in (query.contiguous(), keys, values, output)), lengths]
    attend = compiled()

    def attend_some(start: int, stop: int) -> None:
        attend(*(array[start:stop] for array in arrays), scale)

    num_threads = min(torch.get_num_threads(), rows)
    if num_threads == 1:
        attend_some(0, rows)
    else:
        bounds = [rows * thread // num_threads for thread in range(num_threads + 1)]
        list(_threads(num_threads).map(attend_some, bounds[:-1], bounds[1:]))
    return output


@cache
def compiled() -> Callable[..., None]:
    """Return the compiled kernel; compiling takes about a second the first time."""
    import numba  # here, because an engine on a GPU never needs it

    # Sums may be reordered, as in every matrix product. Values that are not finite must stay so, to be detected.
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}
    three, four = numba.float32[:, :, ::1], numba.float32[:, :, :, ::1]
    signature = numba.void(three, four, four, three, numba.int64[::1], numba.float32)
    result: Callable[..., None] = numba.njit(signature, **options)(_attend)
    return result


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="warren-attention")


def _attend(
    query: np.ndarray, keys: np.ndarray, values: np.ndarray, output: np.ndarray, lengths: np.ndarray, scale: np.float32
) -> None:
    num_rows, num_kv_heads = keys.shape[:2]
    group = query.shape[1] // num_kv_heads  # query heads that share a key/value head
    scores = np.empty(lengths.max(), np.float32)
    for row in range(num_rows):
        length = lengths[row]
        for head in range(group * num_kv_heads):
            head_query, sums = query[row, head], output[row, head]
            highest = np.float32(-np.inf)
            for place in range(length):
                key = keys[row, head // group, place]
                score = np.float32(0)
                for i in range(key.shape[0]):
                    score += head_query[i] * key[i]
                scores[place] = score * scale
                highest = max(highest, scores[place])
            total = np.float32(0)
            for place in range(length):
                scores[place] = np.exp(scores[place] - highest)
                total += scores[place]
            sums[:] = 0
            for place in range(length):
                value = values[row, head // group, place]
                for i in range(value.shape[0]):
                    sums[i] += scores[place] * value[i]
            for i in range(sums.shape[0]):
                sums[i] /= total
