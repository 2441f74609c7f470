"""The results of the GPU lane: kept in files, shown in docs/benchmarks.md; and what the lane says without a GPU."""

import json
from pathlib import Path

import pytest
import torch
from benchmarks.gpu import results
from benchmarks.gpu.__main__ import main

from gpu_devices import end_without_gpu

PAGE = f"before\n{results._BEGIN}\nold\n{results._END}\nafter\n"


def test_the_page_has_the_stored_results() -> None:
    page = results.PAGE.read_text()
    assert results.with_tables(page) == page, "run: python -m benchmarks.gpu.results"


def test_results_of_a_device_are_kept_together_and_shown(tmp_path: Path) -> None:
    assert results.NOTHING_YET in results.with_tables(PAGE, tmp_path)
    file = results.add("cpu", "training", {"bf16": {"tokens/s": 1234.5, "MFU": None}}, tmp_path)
    results.add("cpu", "training", {"fp32": {"tokens/s": 1.0}}, tmp_path)
    assert results.add("cpu", "engines", {"vllm": {"tokens/s": 2.0}}, tmp_path) == file
    stored = json.loads(file.read_text())
    assert stored["training"] == {"bf16": {"tokens/s": 1234.5, "MFU": None}, "fp32": {"tokens/s": 1.0}}
    assert stored["versions"]["torch"] == torch.__version__
    page = results.with_tables(PAGE, tmp_path)
    for line in ("| training | MFU | tokens/s |", "| bf16 |  | 1234 |", "| vllm | 2 |", "before", "after"):
        assert line in page.splitlines()
    assert results.with_tables(page, tmp_path) == page


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_both_commands_end_with_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["benchmarks.gpu"])
    with pytest.raises(SystemExit, match="bench-gpu: no NVIDIA GPU is visible"):
        main()
    end_without_gpu("not gpu")
    with pytest.raises(pytest.exit.Exception, match="test-gpu ran nothing: no NVIDIA GPU is visible") as ended:
        end_without_gpu("gpu")
    assert ended.value.returncode == 0
