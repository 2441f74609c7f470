"""`make bench-gpu`: training and generation on one GPU, in tokens a second, and MFU against its data sheet.

Nothing is downloaded: weights and samples are random. Results go into benchmarks/gpu/results/, one JSON file for each
kind of GPU, and from there into the tables of docs/benchmarks.md. The last line printed is one JSON object.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import engines, results, training
from benchmarks.train import workload
from warren.config import Resources
from warren.inference import EngineOptions
from warren.storage.scratch import scratch_folder

_CASES: Mapping[str, dict[str, Any]] = {
    "bf16": {"precision": "bf16"},
    "bf16, compiled": {"precision": "bf16", "compile": True},
    "fp16": {"precision": "fp16"},
    "fp32": {"precision": "fp32"},
}
_REQUESTS, _TOKENS = 32, 128


def main() -> None:
    """Measure, write the results, and print them."""
    options = _options()
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"bench-gpu: {results.NO_GPU}")
    with tempfile.TemporaryDirectory(prefix="warren-bench-", ignore_cleanup_errors=True) as folder:
        trained = _train(Path(folder), options)
        results.add(options.device, "training", trained, options.out)
        generated = _generate(Path(folder), options)
        file = results.add(options.device, "engines", generated, options.out)
    if options.out == results.FOLDER:
        results.PAGE.write_text(results.with_tables(results.PAGE.read_text()))
    print(json.dumps({"file": str(file), "training": trained, "engines": generated}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu shows that it runs, not how fast"
    )
    parser.add_argument("--quick", action="store_true", help="small models and few steps: that it runs, not how fast")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cases", nargs="+", choices=_CASES, default=list(_CASES))
    parser.add_argument("--out", type=Path, default=results.FOLDER, help="folder of the results")
    options = parser.parse_args()
    if options.quick:
        options.steps = min(options.steps, 2)
    return options


def _train(folder: Path, options: argparse.Namespace) -> dict[str, dict[str, float | None]]:
    recipe = training.recipe(options.steps, options.quick)
    workload.write_samples(workload.root_of(folder))
    store = Path(workload.root_of(folder).key)
    gpus = 1.0 if options.device == "cuda" else 0.0
    measured = {}
    with scratch_folder("ray") as ray_folder, training.start_head(ray_folder, store) as head:
        for number, case in enumerate(options.cases):
            resources = workload.PACKED.model_copy(update={"gpus_per_worker": gpus, **_CASES[case]})
            checked = Resources.model_validate(resources.model_dump())
            measured[case] = training.summary(training.train(head, recipe, checked, store, f"case-{number}"))
            print(f"training, {case}: {measured[case]}", flush=True)
    return measured


def _generate(folder: Path, options: argparse.Namespace) -> dict[str, dict[str, float | None]]:
    number, tokens = (2, 8) if options.quick else (_REQUESTS, _TOKENS)
    measured = {}
    engines.write_model(folder / "model", "float32" if options.quick else "bfloat16", options.quick)
    for kind in engines.KINDS:
        if kind == "vllm" and not engines.has_vllm():
            print("engine, vllm: not installed here; it has an environment of its own (extra `vllm`)")
            continue
        engine = engines.start_engine(kind, folder / "model", EngineOptions(num_slots=number))
        measured[kind] = engines.measure(engine, number, tokens)
        engine.close()
        print(f"engine, {kind}: {measured[kind]}", flush=True)
    return measured


if __name__ == "__main__":
    main()
