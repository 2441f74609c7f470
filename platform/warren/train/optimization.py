"""Optimizer groups and the learning-rate schedule, by Bunny's rules."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from warren.config import StageConfig
from warren.models.vlm import part_of
from warren.train.kernels import has_fused_optimizer


def parameter_groups(model: nn.Module, stage: StageConfig) -> list[dict[str, Any]]:
    """Group trainable parameters by part and weight decay.

    The projector and the vision tower may have their own learning rates; biases and norms do not decay. In Bunny's
    trainer, torch's LayerNorms and the RMSNorms of Llama and MiniCPM do not decay, but other RMSNorms would. No recipe
    of Bunny's has weight decay.
    """
    rates = {
        "projector": stage.projector_learning_rate or stage.learning_rate,
        "vision_tower": stage.vision_tower_learning_rate or stage.projector_learning_rate or stage.learning_rate,
        "language_model": stage.learning_rate,
    }
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((part_of(name), parameter.ndim > 1), []).append(parameter)
    return [
        {"params": parameters, "lr": rates[part], "weight_decay": stage.weight_decay if decays else 0.0}
        for (part, decays), parameters in groups.items()
    ]


class GatedAdamW(torch.optim.AdamW):
    """AdamW that can skip a step: weights and moments stay as they are.

    Attributes:
        closed: While true, `step` does nothing. DeepSpeed still clears its gradient buffers.
    """

    closed = False

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        """Take a step unless `closed`."""
        return None if self.closed else super().step(closure)


def optimizer(model: nn.Module, stage: StageConfig) -> GatedAdamW:
    """Build AdamW over the trainable parameters."""
    groups = parameter_groups(model, stage)
    fused = has_fused_optimizer() or None
    return GatedAdamW(groups, stage.learning_rate, stage.adam_betas, stage.adam_epsilon, fused=fused)


def cosine_schedule(num_steps: int, warmup_fraction: float) -> Callable[[int], float]:
    """Return the factor of the base learning rate at each step: linear warm-up, then half a cosine to zero.

    Warm-up takes `ceil(warmup_fraction × num_steps)` steps and starts at exactly zero, as in Hugging Face's trainer.
    """
    warmup = math.ceil(warmup_fraction * num_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return step / max(1, warmup)
        progress = (step - warmup) / max(1, num_steps - warmup)
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))

    return factor
