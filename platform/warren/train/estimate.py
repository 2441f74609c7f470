"""An estimate of a stage: its parameters, steps, and the memory of one worker for each ZeRO stage.

Model states follow the ZeRO paper (arXiv 1910.02054, section 3): Adam keeps a float32 copy of what trains where weights
are half precision, and two moments. Activations follow Korthikanti et al. (arXiv 2205.05198, section 4) for attention
that stores no score matrix. Frozen parts keep their weights only. Offloaded state is in the host's memory; from ZeRO 2
on, an offloaded optimizer has its share of the gradients there too (arXiv 2101.06840, section 4). All samples are taken
to have full length. What libraries allocate for themselves, and fragmentation, are not counted.
"""

import math
from dataclasses import dataclass
from typing import Any

from warren.config import ModelPart, Recipe, Resources, StageConfig
from warren.models.adapters import add_adapters
from warren.models.vlm import freeze_all_but, outline_model, part_of

GIB = 1024**3
_GATHERED_PARAMETERS = 1_000_000_000  # DeepSpeed's stage3_max_live_parameters
_LAYER_FACTOR = 34  # bytes that one layer saves, per token and hidden unit, at 2 bytes an element


@dataclass(frozen=True)
class Memory:
    """Bytes of one worker at one ZeRO stage: all on its device, except `host`."""

    zero_stage: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    host: int = 0

    @property
    def total(self) -> int:
        """Bytes on the device."""
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class Estimate:
    """The estimate of a stage.

    Attributes:
        parameters: Total and trained parameters of each part.
        tokens_per_image: Positions of one image in the language model.
        num_samples: Samples of the dataset; None if they are unknown.
        num_steps: Optimizer steps; None with `num_samples`.
        num_micro_batches: Micro batches of one rank in one step.
        memory: One entry for each ZeRO stage.
    """

    parameters: dict[ModelPart, tuple[int, int]]
    tokens_per_image: int
    num_samples: int | None
    num_steps: int | None
    num_micro_batches: int
    memory: tuple[Memory, ...]

    @property
    def trained(self) -> int:
        """Number of trained parameters of all parts."""
        return sum(trained for _, trained in self.parameters.values())


def estimate(recipe: Recipe, stage: StageConfig, resources: Resources, num_samples: int | None) -> Estimate:
    """Estimate a stage without weights, data or a cluster.

    Raises:
        ConfigError: The model's configuration is not one transformers knows, or its sizes are not in the recipe and its
            config.json is not at hand.
    """
    model = outline_model(recipe.require("model"))
    if stage.lora is not None:
        add_adapters(model, stage.lora, stage.seed)
    freeze_all_but(model, stage.trainable)
    parameters: dict[ModelPart, tuple[int, int]] = {}
    for name, parameter in model.named_parameters():
        total, trained = parameters.get(part_of(name), (0, 0))
        count = parameter.numel()
        parameters[part_of(name)] = (total + count, trained + (count if parameter.requires_grad else 0))
    steps = stage.duration.steps
    if steps is None and num_samples is not None:
        steps = math.ceil(num_samples / stage.global_batch_size) * (stage.duration.epochs or 1)
    activations = _activations(model.config, stage, resources)
    return Estimate(
        parameters=parameters,
        tokens_per_image=int(model.config.image_seq_length),
        num_samples=num_samples,
        num_steps=steps,
        num_micro_batches=math.ceil(stage.global_batch_size / (resources.max_workers * resources.micro_batch_size)),
        memory=tuple(_memory(z, parameters, resources, activations) for z in range(4)),
    )


def _memory(
    zero_stage: int, parameters: dict[ModelPart, tuple[int, int]], resources: Resources, activations: int
) -> Memory:
    total = sum(count for count, _ in parameters.values())
    trained = sum(count for _, count in parameters.values())
    workers = resources.max_workers
    width = _bytes_per_element(resources)
    weights, gradients = width * total, width * trained
    optimizer = (12 if width == 2 else 8) * trained
    if zero_stage >= 1:
        optimizer = math.ceil(optimizer / workers)
    if zero_stage >= 2:
        gradients = math.ceil(gradients / workers)
    if zero_stage == 3:
        weights = math.ceil(weights / workers)
    host = 0
    if "optimizer" in resources.offload and zero_stage >= 1:
        host, optimizer = optimizer, 0
        if zero_stage >= 2:
            host, gradients = host + gradients, 0
    if "weights" in resources.offload and zero_stage == 3:
        host, weights = host + weights, 0
    if zero_stage == 3:
        weights += width * min(total, _GATHERED_PARAMETERS)
    return Memory(zero_stage, weights, gradients, optimizer, activations, host)


def _activations(config: Any, stage: StageConfig, resources: Resources) -> int:
    """Return the bytes that one micro-batch of full-length samples keeps for its backward pass."""
    half = _bytes_per_element(resources) / 2
    text, vision = config.text_config, config.vision_config
    samples = resources.micro_batch_size
    kept = _kept(samples * stage.max_length_tokens * text.hidden_size, text.num_hidden_layers, resources)
    if "vision_tower" in stage.trainable:
        scales = getattr(config, "vision_scales", None) or [vision.image_size]
        tiles = sum((scale // vision.image_size) ** 2 for scale in scales)
        patches = samples * tiles * (vision.image_size // vision.patch_size) ** 2
        kept += _kept(patches * vision.hidden_size, vision.num_hidden_layers, resources)
    return int(half * kept)


def _kept(units: int, num_layers: int, resources: Resources) -> int:
    """Return the activations of all layers; with checkpointing the layers' inputs, and one layer that is recomputed."""
    if resources.gradient_checkpointing:
        return units * (2 * num_layers + _LAYER_FACTOR)
    return units * _LAYER_FACTOR * num_layers


def _bytes_per_element(resources: Resources) -> int:
    return 4 if resources.precision == "fp32" else 2
