"""The devices of the GPU lane: every test runs on a CPU in CI, and on a GPU with `make test-gpu`."""

from collections.abc import Callable

import pytest
import torch
from benchmarks.gpu import results

CUDA = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason=results.NO_GPU)],
)
Record = Callable[..., None]


def end_without_gpu(markers: str) -> None:
    """End `make test-gpu` with one line where there is no GPU.

    Args:
        markers: What pytest was asked to select with `-m`.
    """
    if markers == "gpu" and not torch.cuda.is_available():
        pytest.exit(f"test-gpu ran nothing: {results.NO_GPU}", returncode=0)
