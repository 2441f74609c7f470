"""LLaVA with what transformers' class lacks: several image scales, other projectors, EVA-CLIP.

`ExtendedLlava` is LLaVA with another image path and nothing else; generation, loss and the decoder are inherited.
Everything that plain LLaVA expresses is saved as plain LLaVA, which needs no Warren to load.
"""

from typing import Any

from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from warren.compat.transformers import LlavaWith, read_under_names
from warren.models.eva_clip import EvaClipVisionConfig
from warren.models.projectors import build_projector
from warren.models.s2 import multi_scale_features

PLAIN_PROJECTOR = "mlp2x_gelu"


class ExtendedLlavaConfig(LlavaConfig):
    """LLaVA's configuration with Warren's projector and scales.

    `vision_scales` are S²'s, ascending, in pixels; with None or one scale the tower is used as it is.
    """

    model_type = "warren_llava"

    projector_type: str = PLAIN_PROJECTOR
    vision_scales: list[int] | None = None


class ExtendedLlavaModel(LlavaModel):
    """LLaVA without its head, with Warren's image path."""

    config_class = ExtendedLlavaConfig

    def __init__(self, config: ExtendedLlavaConfig) -> None:
        super().__init__(config)
        width = config.vision_config.hidden_size * len(config.vision_scales or [0])
        self.multi_modal_projector = build_projector(config.projector_type, width, config.text_config.hidden_size)
        self.post_init()

    def get_image_features(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """Encode and project images [B, 3, S, S]; `pooler_output` is a list of [tokens per image, D]."""
        if self.config.vision_scales:
            features = multi_scale_features(self._tower_features, pixel_values, self.config.vision_scales)
        else:
            features = self._tower_features(pixel_values)
        projected = self.multi_modal_projector(features)
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=list(projected))

    def _tower_features(self, pixels: Tensor) -> Tensor:
        states = self.vision_tower(pixels, output_hidden_states=True, return_dict=True).hidden_states
        chosen: Tensor = states[self.config.vision_feature_layer]
        return chosen[:, 1:] if self.config.vision_feature_select_strategy == "default" else chosen


class ExtendedLlava(LlavaWith):
    """LLaVA with Warren's image path."""

    config_class = ExtendedLlavaConfig
    inner_class = ExtendedLlavaModel


MODEL_CLASSES: dict[str, type[LlavaForConditionalGeneration]] = {
    LlavaConfig.model_type: LlavaForConditionalGeneration,
    ExtendedLlavaConfig.model_type: ExtendedLlava,
}
"""By `model_type` in config.json: every layout that Warren writes."""


def config_class(vision: Any, projector_type: str, scales: list[int] | None) -> type[LlavaConfig]:
    """Return the plain configuration where it is enough."""
    plain = projector_type == PLAIN_PROJECTOR and not scales and not isinstance(vision, EvaClipVisionConfig)
    return LlavaConfig if plain else ExtendedLlavaConfig


AutoConfig.register(ExtendedLlavaConfig.model_type, ExtendedLlavaConfig)
AutoModelForImageTextToText.register(ExtendedLlavaConfig, ExtendedLlava)
read_under_names(
    ExtendedLlavaConfig.model_type,
    {
        r"^language_model.lm_head": "lm_head",
        r"^language_model.model": "model.language_model",
        r"^vision_tower.vision_model": "model.vision_tower",
        r"^multi_modal_projector": "model.multi_modal_projector",
    },
)
