"""Tensor names: Bunny's and those of the Hugging Face LLaVA layout, both ways."""

from typing import Any

from warren.models.eva_clip import EvaClipVisionConfig
from warren.models.extended_llava import ExtendedLlavaConfig
from warren.models.tensors import LazyTensors

_PLAIN = (  # the first prefix that fits
    ("model.mm_projector.0.", "multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "multi_modal_projector.linear_2."),
)
_EXTENDED = (("model.mm_projector.", "multi_modal_projector."),)
_DECODER = (("model.", "language_model.model."), ("lm_head.", "language_model.lm_head."))
_TOWER = (("model.vision_tower.vision_tower.vision_model.", "vision_tower.vision_model."),)
_EVA_TOWER = (("model.vision_tower.vision_tower.model.", "vision_tower.vision_model."),)
_DROPPED = ("rotary_emb.inv_freq", "position_ids")  # buffers that old versions saved, computed anew at load


def names_of(config: Any) -> tuple[tuple[str, str], ...]:
    """Return the pairs of prefixes (Bunny's, LLaVA's) of a model."""
    projector = _EXTENDED if isinstance(config, ExtendedLlavaConfig) else _PLAIN
    tower = _EVA_TOWER if isinstance(config.vision_config, EvaClipVisionConfig) else _TOWER
    return (*tower, *projector, *_DECODER)


def to_llava(tensors: LazyTensors, config: Any) -> LazyTensors:
    """Rename Bunny's tensors; buffers that are computed at load are left out."""
    table = names_of(config)
    return {_renamed(name, table): read for name, read in tensors.items() if not name.endswith(_DROPPED)}


def to_bunny(tensors: LazyTensors, config: Any) -> LazyTensors:
    """Rename the tensors of a LLaVA layout to Bunny's."""
    back = tuple((new, old) for old, new in names_of(config))
    return {_renamed(name, back): read for name, read in tensors.items()}


def _renamed(name: str, table: tuple[tuple[str, str], ...]) -> str:
    return next((new + name.removeprefix(old) for old, new in table if name.startswith(old)), name)
