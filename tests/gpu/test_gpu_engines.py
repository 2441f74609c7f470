"""The engines on a device: they pass the parity certificate that a CPU wrote, and their speed can be measured."""

from pathlib import Path

import pytest
import torch
from benchmarks.gpu import engines

from gpu_devices import Record
from warren.data.golden_cases import GoldenCases
from warren.inference import EngineOptions
from warren.train.golden_maker import make_cases
from warren_serve.backend import LocalBackend
from warren_serve.parity import check_engine
from warren_serve.settings import ServeSettings

NEEDS_VLLM = pytest.mark.skipif(
    not engines.has_vllm(), reason="vLLM is not installed: it has an environment of its own"
)
KINDS = ["transformers", pytest.param("vllm", marks=NEEDS_VLLM)]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def certified(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GoldenCases]:
    """A model folder, and its golden cases as a machine without a GPU makes them."""
    folder = tmp_path_factory.mktemp("gpu") / "model"
    engines.write_model(folder, request.param, quick=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        return folder, make_cases(folder, "digest")


@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_passes_the_certificate_that_a_cpu_wrote(
    device: str, certified: tuple[Path, GoldenCases], kind: str, record: Record
) -> None:
    folder, golden = certified
    if (device, golden.dtype) == ("cpu", "float32"):
        pytest.skip("tests/unit/serve/test_parity_certificate.py checks it")
    settings = ServeSettings.parse(
        {"release": "unused", "engine": kind, "num_slots": 4, "num_gpus": float(device == "cuda")}
    )
    before = free_gpu_bytes(device)
    engine = engines.start_engine(kind, folder, EngineOptions(num_slots=4))
    taken = before - free_gpu_bytes(device)
    backend = LocalBackend(engine, "v1", settings)
    try:
        report = check_engine(golden, backend, settings)
        speed = engines.measure(engine, num_requests=2, num_tokens=8)
    finally:
        backend.close()
    record(f"certificate, {kind}, {golden.dtype}", **{"log-probability, largest difference": report.largest_difference})
    assert (report.num_cases, report.num_left_out) == (len(golden.cases), 0)
    assert min(value for value in speed.values() if value is not None) > 0
    assert (taken > 0) == (device == "cuda"), "the model is on the other device"


def free_gpu_bytes(device: str) -> int:
    return int(torch.cuda.mem_get_info()[0]) if device == "cuda" else 0
