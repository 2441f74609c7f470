"""The FLOPs of a step, and the peak of a device: together they give model FLOPs utilisation (MFU).

Convention, as in the PaLM report (arXiv 2204.02311, appendix B): a token costs 2 FLOPs forward for every weight of a
matrix it passes, and 4·layers·width·length in attention, unmasked; the backward pass costs twice the forward. Warren
adds four rules. A frozen weight has no gradient to compute. A part has no backward pass if nothing in it or before it
trains. The output matrix counts at supervised positions only. Embeddings are look-ups and cost nothing. Recomputation
for gradient checkpointing is not counted.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from warren.models.vlm import part_of

_PEAK_TFLOPS = {  # dense bf16, from the makers' data sheets
    "A100": 312.0,
    "A800": 312.0,
    "H100": 989.0,
    "H800": 989.0,
    "H200": 989.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10G": 70.0,
    "RTX 4090": 165.0,
}


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of one step, all ranks together."""

    vision: float
    text: float


@dataclass(frozen=True)
class FlopsCount:
    """FLOPs of an image, a token, a pair of tokens and a supervised token, forward and backward."""

    per_image: float
    per_token: float
    per_attended: float
    per_supervised: float

    @classmethod
    def of(cls, model: Any) -> "FlopsCount":
        """Count a `LlavaForConditionalGeneration` as it will be trained. Shapes are enough: it may have no weights."""
        config = model.config
        vision, text = config.vision_config, config.text_config
        scales = getattr(config, "vision_scales", None) or [vision.image_size]
        num_tiles = sum((scale // scales[0]) ** 2 for scale in scales)
        patches = (vision.image_size // vision.patch_size) ** 2
        costs, trained = _costs_by_part(model)
        before_text = trained["vision_tower"] or trained["projector"]
        text_backward = trained["language_model"] or before_text
        tower_attention = 4 * vision.num_hidden_layers * vision.hidden_size * patches**2
        tower = costs["vision_tower"].times(trained["vision_tower"]) * patches
        tower += tower_attention * (3 if trained["vision_tower"] else 1)
        projector = costs["projector"].times(trained["vision_tower"]) * config.image_seq_length
        head = _Cost.of(model.lm_head.weight)
        return cls(
            per_image=tower * num_tiles + projector,
            per_token=costs["language_model"].times(text_backward),
            # Attention has no weights: its backward costs twice its forward whenever there is one.
            per_attended=4 * text.num_hidden_layers * text.hidden_size * (3 if text_backward else 1),
            per_supervised=head.times(text_backward),
        )

    def step(self, images: float, tokens: float, attended: float, supervised: float) -> StepFlops:
        """Return the FLOPs of a step.

        Args:
            images: Number of images.
            tokens: Number of tokens, padding left out.
            attended: Sum of the squared lengths of the sequences.
            supervised: Number of tokens with a loss.
        """
        text = self.per_token * tokens + self.per_attended * attended + self.per_supervised * supervised
        return StepFlops(vision=self.per_image * images, text=text)


def peak_tflops(device: torch.device, configured: float | None) -> float | None:
    """Return a device's peak in TFLOP/s: the configured one, else the data sheet's, else None."""
    if configured is not None or device.type != "cuda":
        return configured
    name = torch.cuda.get_device_name(device)
    return next((peak for mark, peak in _PEAK_TFLOPS.items() if mark in name), None)


@dataclass(frozen=True)
class _Cost:
    """FLOPs of weights per token: forward, for the gradient of their inputs, and for their own gradient."""

    forward: int = 0
    inputs: int = 0
    own: int = 0

    @classmethod
    def of(cls, weight: torch.Tensor) -> "_Cost":
        forward = 2 * weight.numel()
        return cls(forward, forward, forward if weight.requires_grad else 0)

    def __add__(self, other: "_Cost") -> "_Cost":
        return _Cost(self.forward + other.forward, self.inputs + other.inputs, self.own + other.own)

    def times(self, backward: bool) -> float:
        """Return the FLOPs of a part; `backward` says whether the gradient of its inputs is needed."""
        return float(self.forward + self.own + (self.inputs if backward else 0))


def _costs_by_part(model: nn.Module) -> tuple[dict[str, _Cost], dict[str, bool]]:
    """Return each part's cost and whether it trains; matrices and convolutions count, but not the output matrix."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    costs = dict.fromkeys(("vision_tower", "projector", "language_model"), _Cost())
    trained = dict.fromkeys(costs, False)
    for name, parameter in model.named_parameters():
        part = part_of(name)
        trained[part] |= parameter.requires_grad
        if parameter.ndim > 1 and id(parameter) not in tables and not name.startswith("lm_head."):
            costs[part] += _Cost.of(parameter)
    return costs, trained
