"""The tables of docs/scaling.md: what the published recipes need on 8 and 64 GPUs, from formulas, not from runs.

python -m benchmarks.scaling
"""

from dataclasses import dataclass
from pathlib import Path

from warren.config import Recipe, Resources, StageConfig, load_config
from warren.config.catalog import DATASET_SAMPLES
from warren.models import add_adapters, freeze_all_but
from warren.models.vlm import outline_model
from warren.train.estimate import GIB, Estimate, estimate
from warren.train.flops import FlopsCount

JOBS = Path(__file__).resolve().parent.parent / "jobs"
RECIPES = (
    ("bunny-v1_0-3b", "gpu-8-zero3"),
    ("bunny-v1_0-4b-recipe-2", "gpu-8-zero3-long"),
    ("bunny-v1_1-4b-recipe-2", "gpu-8-zero3-long"),
    ("bunny-v1_1-llama-3-8b-v-recipe-2", "gpu-8-zero3-long"),
    ("bunny-full", "gpu-8-zero3"),
)
TEXT_TOKENS, SUPERVISED_TOKENS = 150, 75  # of one sample: an assumption
MFU = 0.4  # an assumption
BYTES_PER_IMAGE = 24_000  # Bunny's stage 1: 48.4 GB of archives for 2,000,000 images
GB = 1e9


@dataclass(frozen=True)
class Gpu:
    """A data sheet: dense bf16 peak, NVLink in one direction, network of one GPU in one direction."""

    name: str
    tflops: float
    nvlink_gb_s: float
    network_gb_s: float


GPUS = (Gpu("A100", 312.0, 300.0, 25.0), Gpu("H100", 989.0, 450.0, 50.0))


@dataclass(frozen=True)
class Row:
    """One recipe's second stage on a number of GPUs."""

    recipe: Recipe
    estimate: Estimate
    flops_per_step: float
    num_gpus: int
    zero_stage: int

    @property
    def stage(self) -> StageConfig:
        """The stage that is meant."""
        return self.recipe.require("finetune")

    @property
    def steps(self) -> int:
        """Optimizer steps of the stage."""
        return self.estimate.num_steps or 0

    def seconds_per_step(self, gpu: Gpu) -> float:
        """Arithmetic alone, at the assumed share of the peak."""
        return self.flops_per_step / (self.num_gpus * gpu.tflops * 1e12 * MFU)

    def sent_bytes(self, zero_stage: int) -> float:
        """What one GPU sends in a step (ZeRO paper, section 7; ring collectives)."""
        share = (self.num_gpus - 1) / self.num_gpus
        total = sum(count for count, _ in self.estimate.parameters.values())
        if zero_stage < 3:
            return share * 2 * 2 * self.estimate.trained
        return share * 2 * (2 * total * self.estimate.num_micro_batches + self.estimate.trained)


def rows(num_gpus: int) -> list[Row]:
    """Estimate every recipe on a number of GPUs, with micro-batches that keep the global batch."""
    result = []
    for name, resources_name in RECIPES:
        recipe = load_config(Recipe, name, [JOBS / "recipes"])
        resources = load_config(Resources, resources_name, [JOBS / "resources"])
        stage = recipe.require("finetune")
        per_gpu = max(1, min(resources.micro_batch_size, stage.global_batch_size // num_gpus))
        resources = resources.model_copy(update={"num_workers": num_gpus, "micro_batch_size": per_gpu})
        dataset = str(stage.dataset).split("@")[0]
        stage_estimate = estimate(recipe, stage, resources, DATASET_SAMPLES[dataset])
        result.append(Row(recipe, stage_estimate, _flops(recipe), num_gpus, resources.zero_stage))
    return result


def _flops(recipe: Recipe) -> float:
    model, stage = outline_model(recipe.require("model")), recipe.require("finetune")
    if stage.lora is not None:
        add_adapters(model, stage.lora, stage.seed)
    freeze_all_but(model, stage.trainable)
    size, length = stage.global_batch_size, int(model.config.image_seq_length) + TEXT_TOKENS
    step = FlopsCount.of(model).step(size, size * length, size * length**2, size * SUPERVISED_TOKENS)
    return step.vision + step.text


def memory_table(estimates: list[Row]) -> str:
    """Return GiB of one GPU, model states and activations, for each ZeRO stage."""
    lines = [
        "| recipe, stage 2 | ZeRO-0 | ZeRO-1 | ZeRO-2 | ZeRO-3 | of it activations |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in estimates:
        totals = " | ".join(f"{memory.total / GIB:.0f}" for memory in row.estimate.memory)
        lines.append(f"| `{row.recipe.name}` | {totals} | {row.estimate.memory[0].activations / GIB:.0f} |")
    return "\n".join(lines)


def network_table(estimates: list[Row]) -> str:
    """Return what a GPU sends in a step, and how long that and the arithmetic take."""
    gpus = " | ".join(f"{gpu.name}: arithmetic, sent" for gpu in GPUS)
    lines = [f"| recipe, stage 2 | ZeRO-2 sends | ZeRO-3 sends | {gpus} |", "|---|---:|---:|" + "---:|" * len(GPUS)]
    for row in estimates:
        two, three = (row.sent_bytes(stage) / GB for stage in (2, 3))
        cells = []
        for gpu in GPUS:
            speed = gpu.nvlink_gb_s if row.num_gpus <= 8 else gpu.network_gb_s
            cells.append(f"{row.seconds_per_step(gpu):.1f} s, {three / speed:.1f} s")
        lines.append(f"| `{row.recipe.name}` | {two:.1f} GB | {three:.0f} GB | {' | '.join(cells)} |")
    return "\n".join(lines)


def work_table(estimates: list[Row]) -> str:
    """Return steps, days, data rate and checkpoint size."""
    gpus = " | ".join(f"{gpu.name}: hours, GPU-hours" for gpu in GPUS)
    head = (
        f"| recipe, stage 2 | steps | PFLOP a step | {gpus} | samples/s ({GPUS[-1].name}) | images MB/s | checkpoint |"
    )
    lines = [head, "|---|---:|---:|" + "---:|" * len(GPUS) + "---:|---:|---:|"]
    for row in estimates:
        times = [row.seconds_per_step(gpu) * row.steps / 3600 for gpu in GPUS]
        cells = " | ".join(f"{hours:.1f}, {hours * row.num_gpus:.0f}" for hours in times)
        rate = row.stage.global_batch_size / row.seconds_per_step(GPUS[-1])
        total = sum(count for count, _ in row.estimate.parameters.values())
        size = (2 * total + 14 * row.estimate.trained) / GB
        lines.append(
            f"| `{row.recipe.name}` | {row.steps:,} | {row.flops_per_step / 1e15:.1f} | {cells} | {rate:.0f} | "
            f"{rate * BYTES_PER_IMAGE / 1e6:.1f} | {size:.0f} GB |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print all tables as Markdown."""
    for num_gpus in (8, 64):
        estimates = rows(num_gpus)
        print(f"### {num_gpus} GPUs: memory of one GPU in GiB\n\n{memory_table(estimates)}\n")
        print(f"### {num_gpus} GPUs: network\n\n{network_table(estimates)}\n")
        print(f"### {num_gpus} GPUs: time, data, checkpoints\n\n{work_table(estimates)}\n")


if __name__ == "__main__":
    main()
