"""Tensor names: Bunny's and those of the Hugging Face LLaVA layout, both ways."""

from warren.models.tensors import LazyTensors

_TO_LLAVA = (  # the first prefix that fits
    ("model.vision_tower.vision_tower.vision_model.", "vision_tower.vision_model."),
    ("model.mm_projector.0.", "multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "multi_modal_projector.linear_2."),
    ("model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
)
_DROPPED = ("rotary_emb.inv_freq", "position_ids")  # buffers that old versions saved, computed anew at load

EMBEDDINGS = "language_model.model.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"


def to_llava(tensors: LazyTensors) -> LazyTensors:
    """Rename Bunny's tensors; buffers that are computed at load are left out."""
    return {_renamed(name, _TO_LLAVA): read for name, read in tensors.items() if not name.endswith(_DROPPED)}


def to_bunny(tensors: LazyTensors) -> LazyTensors:
    """Rename the tensors of a LLaVA layout to Bunny's."""
    back = tuple((new, old) for old, new in _TO_LLAVA)
    return {_renamed(name, back): read for name, read in tensors.items()}


def _renamed(name: str, table: tuple[tuple[str, str], ...]) -> str:
    return next((new + name.removeprefix(old) for old, new in table if name.startswith(old)), name)
