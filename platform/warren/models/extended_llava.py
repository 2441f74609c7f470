"""What transformers' LLaVA cannot express: several scales, other projectors, EVA-CLIP.

`ExtendedLlava` is LLaVA with another image path and nothing else; generation, loss and the decoder are inherited.
Everything that plain LLaVA expresses is saved as plain LLaVA, which needs no Warren to load.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, LlavaConfig, LlavaForConditionalGeneration
from transformers.conversion_mapping import WeightRenaming, register_checkpoint_conversion_mapping
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava.modeling_llava import LlavaModel

from warren.models.eva_clip import EvaClipVisionConfig
from warren.models.projectors import build_projector
from warren.models.s2 import multi_scale_features

PLAIN_PROJECTOR = "mlp2x_gelu"


class ExtendedLlavaConfig(LlavaConfig):
    """LLaVA's configuration, and what of it is Warren's.

    `vision_scales` are S²'s, ascending, in pixels; None or one scale is the tower as it is.
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


class ExtendedLlava(LlavaForConditionalGeneration):
    """LLaVA with Warren's image path."""

    config_class = ExtendedLlavaConfig

    def __init__(self, config: ExtendedLlavaConfig) -> None:
        super(LlavaForConditionalGeneration, self).__init__(config)
        self.model = ExtendedLlavaModel(config)
        self.lm_head = torch.nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()


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
register_checkpoint_conversion_mapping(
    ExtendedLlavaConfig.model_type,
    [  # on disk → in memory
        WeightRenaming(source_patterns=r"^language_model.lm_head", target_patterns="lm_head"),
        WeightRenaming(source_patterns=r"^language_model.model", target_patterns="model.language_model"),
        WeightRenaming(source_patterns=r"^vision_tower.vision_model", target_patterns="model.vision_tower"),
        WeightRenaming(source_patterns=r"^multi_modal_projector", target_patterns="model.multi_modal_projector"),
    ],
)
