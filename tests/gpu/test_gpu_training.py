"""The real training job on a device, and what `make bench-gpu` makes of it. On a CPU it is a long test."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.gpu import results, training

from factories import colour_sample, tiny_recipe, tiny_stage, write_dataset
from gpu_devices import CUDA, Record
from warren.config import Duration, Resources
from warren.storage import Location
from warren.storage.scratch import scratch_folder
from warren.testbed import RayHead

pytestmark = pytest.mark.timeout(900)
STEPS = 6
ON_A_CPU = Resources(num_workers=1, cpus_per_worker=0.5, data_cpus_per_task=0.5, zero_stage=2, micro_batch_size=4)


@pytest.fixture(scope="module", params=[pytest.param("cpu", marks=pytest.mark.long), CUDA])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu-store")
    write_dataset(Location.parse(str(folder)), "captions", [colour_sample(n, caption=True) for n in range(32)])
    return folder


@pytest.fixture(scope="module")
def head(device: str, store: Path) -> Iterator[RayHead]:
    with pytest.MonkeyPatch.context() as patch:
        if device == "cuda":
            patch.delenv("DS_ACCELERATOR", raising=False)  # which the other tests set to cpu
        with scratch_folder("ray") as folder, training.start_head(folder, store) as head:
            yield head


def losses(head: RayHead, store: Path, run: str, **changes: Any) -> list[float]:
    recipe = tiny_recipe(pretrain=tiny_stage("captions@v1", template="plain", duration=Duration(steps=STEPS)))
    resources = Resources.model_validate({**ON_A_CPU.model_dump(), **changes})
    return [row["loss"] for row in training.train(head, recipe, resources, store, run)]


@pytest.fixture(scope="module")
def expected(head: RayHead, store: Path) -> list[float]:
    """The losses of a CPU in float32."""
    return losses(head, store, "expected")


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 5e-3), ("bf16", 2e-2), ("fp16", 2e-2)])
def test_a_job_trains_as_on_a_cpu_in_float32(
    device: str, head: RayHead, store: Path, expected: list[float], precision: str, bound: float, record: Record
) -> None:
    if (device, precision) == ("cpu", "fp16"):
        pytest.skip("DeepSpeed trains fp16 on a CPU only where tests/integration/test_loss_curve.py lets it")
    gpus = float(device == "cuda")
    trained = losses(head, store, precision, gpus_per_worker=gpus, precision=precision, packing=True)
    # Its first step finds the loss scale in fp16, and is left out: each loss is that of one step before.
    pairs = list(zip(trained, expected, strict=True))[: 1 if precision == "fp16" else None]
    largest = max(abs(one - other) / other for one, other in pairs)
    record(f"training job, {precision}", **{"loss, relative difference": largest, "last loss": trained[-1]})
    assert len(trained) == STEPS
    assert trained[-1] < trained[0]
    assert largest < bound, pairs


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU, make bench-gpu itself is run")
def test_the_measurement_runs_from_the_job_to_the_page(device: str, repository: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", device, "--quick", "--cases", "bf16", "--out"]
    ended = subprocess.run([*command, str(tmp_path)], cwd=repository, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    printed = json.loads(ended.stdout.splitlines()[-1])
    stored = json.loads(Path(printed["file"]).read_text())
    assert stored["training"] == printed["training"]
    assert stored["training"]["bf16"]["tokens/s"] > 0
    assert "| bf16 |" in results.tables(tmp_path)
