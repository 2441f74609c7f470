"""The real training job on one device: its recipe, its data, and what its steps took."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.gpu.results import REPOSITORY
from benchmarks.train import workload
from warren.config import LanguageModelConfig, Recipe, Resources, VisionTowerConfig
from warren.storage import Location
from warren.testbed import RayHead
from warren.train.run import Run
from warren.train.run_report import read_metrics
from warren.train.step_metrics import StepMetrics

_WARM_UP_STEPS = 3
_TIMEOUT_S = 400
_TOWER = {  # SigLIP so400m, 384 px: 729 image tokens
    "image_size": 384,
    "patch_size": 14,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
}
QWEN_0_5B: dict[str, Any] = {  # the shape of Qwen1.5-0.5B; the vocabulary is another
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": 2048,
}


def recipe(steps: int, quick: bool) -> Recipe:
    """Return a recipe whose first stage trains projector and language model, as Bunny's second does.

    Args:
        quick: The small model of `make bench-train`, to see that everything runs.
    """
    small = workload.recipe(steps)
    if quick:
        return small
    model, stage = small.require("model"), small.require("pretrain")
    large = model.model_copy(
        update={
            "vision_tower": VisionTowerConfig(family="siglip", config=_TOWER),
            "language_model": LanguageModelConfig(model_type="qwen2", config=QWEN_0_5B),
        }
    )
    longer = stage.model_copy(update={"global_batch_size": 32, "max_length_tokens": 2048})
    return small.model_copy(update={"model": large, "pretrain": longer})


def start_head(folder: Path, store: Path) -> RayHead:
    """Return a Ray head for jobs that read and write `store`; it offers the GPUs that it finds."""
    sources = os.pathsep.join(str(REPOSITORY / name) for name in ("platform", "serve"))
    environment = {"WARREN_STORAGE": str(store), "PYTHONPATH": sources}
    return RayHead(folder, max(4, os.cpu_count() or 4), environment, object_store_bytes=1_000_000_000)


def train(head: RayHead, recipe: Recipe, resources: Resources, store: Path, run: str) -> list[StepMetrics]:
    """Run `jobs/pretrain.py` to its end and return the metrics of its steps.

    Raises:
        RuntimeError: The job failed; with its last lines.
    """
    files = [store / f"{run}-{name}.yaml" for name in ("recipe", "resources")]
    for file, config in zip(files, (recipe, resources), strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(json.loads(config.model_dump_json(exclude_none=True))))  # JSON is YAML
    command = [
        sys.executable,
        "jobs/pretrain.py",
        "--recipe",
        str(files[0]),
        "--resources",
        str(files[1]),
        "--run",
        run,
    ]
    environment = {**os.environ, **head.environment, "RAY_ADDRESS": head.driver_address}
    ended = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_S)
    if ended.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {ended.returncode}:\n{ended.stderr[-3000:]}")
    return read_metrics(Run.of(Location.parse(str(store)), run))


def summary(rows: Sequence[StepMetrics]) -> dict[str, float | None]:
    """Return the medians of the steps behind the warm-up, and the last loss."""
    warm = rows[_WARM_UP_STEPS:] or rows
    mfus = [row["mfu"] for row in warm if "mfu" in row]
    return {
        "step, s": median(row["step_s"] for row in warm),
        "tokens/s": median(row["tokens_per_s"] for row in warm),
        "TFLOP/s": median(row["tflops_per_s"] for row in warm),
        "MFU": median(mfus) if mfus else None,
        "waiting for data, fraction": sum(row["data_wait_s"] for row in warm) / sum(row["step_s"] for row in warm),
        "last loss": rows[-1]["loss"],
    }
