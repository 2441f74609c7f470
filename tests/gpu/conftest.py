"""Where a test of the GPU lane computes, and where its numbers go."""

from pathlib import Path

import pytest
from benchmarks.gpu import results

from gpu_devices import CUDA, Record, end_without_gpu


def pytest_collection_modifyitems(config: pytest.Config) -> None:
    """Say at once that there is no GPU."""
    end_without_gpu(config.getoption("markexpr"))


@pytest.fixture(scope="session", params=["cpu", CUDA])
def device(request: pytest.FixtureRequest) -> str:
    """Where the model computes."""
    return str(request.param)


@pytest.fixture
def record(device: str, tmp_path: Path) -> Record:
    """Return a function that keeps a check's numbers; those of a GPU go where docs/benchmarks.md takes them from."""
    folder = results.FOLDER if device == "cuda" else tmp_path

    def keep(check: str, **numbers: float | str) -> None:
        results.add(device, "checks", {check: numbers}, folder)

    return keep
