"""A stage described without running it: nothing is downloaded and nothing is started."""

import json
from typing import Literal

from warren.config import Recipe, Resources, StageConfig
from warren.config.catalog import DATASET_SAMPLES
from warren.data.batch import Cut
from warren.data.manifest import read_manifest
from warren.data.mixture import samples_per_epoch
from warren.errors import NotFoundError
from warren.storage import Location
from warren.train.engine import deepspeed_config
from warren.train.estimate import GIB, Estimate, Memory, estimate
from warren.train.evaluation_plan import EvaluationPlan

_WIDTHS = (10, 11, 11, 13, 10, 10)


def dry_run(
    recipe: Recipe, stage_name: Literal["pretrain", "finetune"], resources: Resources, root: Location | None
) -> str:
    """Describe a stage: parameters, tokens, steps, memory for each ZeRO stage, DeepSpeed's JSON.

    Args:
        root: Where datasets are stored; without it, or for a dataset that is not there, published sizes are used.

    Raises:
        ConfigError: The model's sizes are not known, or the recipe cannot be trained.
    """
    recipe.check_trainable()
    stage = recipe.require(stage_name)
    num_samples, datasets = _samples(stage, root)
    estimated = estimate(recipe, stage, resources, num_samples)
    cut = Cut.of(stage.global_batch_size, resources.max_workers, resources.micro_batch_size)
    sections = [
        f"{recipe.name}, {stage_name}: {recipe.description}".rstrip(": "),
        _parameters(estimated),
        "\n".join([_work(stage, resources, estimated, datasets), *_evaluations(recipe, stage_name)]),
        _memory(estimated, resources),
        "DeepSpeed\n" + json.dumps(deepspeed_config(stage, resources, cut), indent=2),
    ]
    return "\n\n".join(sections)


def _samples(stage: StageConfig, root: Location | None) -> tuple[int | None, list[str]]:
    """Return the samples of an epoch (None if a dataset's size is unknown) and one line for each dataset."""
    sizes = [_size(component.name, root) for component in stage.mixture]
    rows = [size for size, _ in sizes]
    known = [size for size in rows if size is not None]
    counts = samples_per_epoch(stage.mixture, known) if len(known) == len(rows) else [None] * len(rows)
    lines = [
        f"{component.name}: {'unknown' if count is None else f'{count:,}'} samples an epoch ({origin})"
        for component, count, (_, origin) in zip(stage.mixture, counts, sizes, strict=True)
    ]
    return (None if None in counts else sum(count or 0 for count in counts)), lines


def _size(dataset: str, root: Location | None) -> tuple[int | None, str]:
    if root is not None:
        try:
            return read_manifest(root, dataset).rows, f"in {root}"
        except NotFoundError:
            pass
    known = DATASET_SAMPLES.get(dataset.split("@")[0])
    return known, "published size; the dataset is not in storage" if known else "the dataset is not in storage"


def _parameters(estimated: Estimate) -> str:
    rows = [f"{'parameters':<18}{'all':>16}{'trained':>16}"]
    rows += [f"  {part:<16}{total:>16,}{trained:>16,}" for part, (total, trained) in estimated.parameters.items()]
    total = sum(count for count, _ in estimated.parameters.values())
    return "\n".join([*rows, f"  {'together':<16}{total:>16,}{estimated.trained:>16,}"])


def _work(stage: StageConfig, resources: Resources, estimated: Estimate, datasets: list[str]) -> str:
    steps = "unknown" if estimated.num_steps is None else f"{estimated.num_steps:,}"
    rate = f"{stage.learning_rate:g}"
    if stage.projector_learning_rate:
        rate += f", projector and vision tower {stage.projector_learning_rate:g}"
    return "\n".join(
        [
            *(f"dataset           {line}" for line in datasets),
            f"steps             {steps} of {stage.global_batch_size} samples = {resources.max_workers} workers × "
            f"{resources.micro_batch_size} × {estimated.num_micro_batches}",
            f"tokens per sample {estimated.tokens_per_image} an image and the text, at most {stage.max_length_tokens}",
            f"learning rate     {rate}; warm-up {stage.warmup_fraction:.0%}, then a cosine to zero",
        ]
    )


def _evaluations(recipe: Recipe, stage: Literal["pretrain", "finetune"]) -> list[str]:
    """Return which checkpoints are evaluated, and by what; nothing where none is."""
    plan = EvaluationPlan.of(recipe, stage)
    if plan is None:
        return []
    by = [*([recipe.evaluation_score] if recipe.evaluation_score else []), *(each.name for each in recipe.benchmarks)]
    line = f"evaluated         checkpoints every {plan.every_steps:,} steps and the last, by {', '.join(by)}"
    released = "" if plan.release_when == "manual" else f"; released by itself: {plan.release_when}"
    return [f"{line}; best by {plan.best_by}{released}"]


def _memory(estimated: Estimate, resources: Resources) -> str:
    checkpointing = "with" if resources.gradient_checkpointing else "without"
    unit, name = (GIB, "GiB") if max(memory.total for memory in estimated.memory) >= GIB else (GIB // 1024, "MiB")
    host = f"{'host':>10}" if resources.offload else ""
    rows = [
        f"memory of a worker in {name}: {resources.precision}, {checkpointing} checkpointing, full-length samples",
        f"  {'ZeRO':<6}{'weights':>10}{'gradients':>11}{'optimizer':>11}{'activations':>13}{'together':>10}{host}",
    ]
    return "\n".join(rows + [_row(memory, unit, resources) for memory in estimated.memory])


def _row(memory: Memory, unit: int, resources: Resources) -> str:
    values = [memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.total]
    if resources.offload:
        values.append(memory.host)
    columns = "".join(f"{value / unit:>{width}.1f}" for value, width in zip(values, _WIDTHS, strict=False))
    return (
        f"  {memory.zero_stage:<6}{columns}{'  ← these resources' if memory.zero_stage == resources.zero_stage else ''}"
    )
