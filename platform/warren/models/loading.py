"""Loading a model of any layout that Warren writes."""

from pathlib import Path

from transformers import LlavaForConditionalGeneration, LlavaProcessor

from warren.models.bunny import import_bunny, is_bunny
from warren.models.llava_layout import load_bundle
from warren.storage.scratch import scratch_folder


def load(folder: str | Path) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Load a model and its processor from a local folder: the LLaVA layout, or a whole Bunny checkpoint.

    The model takes `input_ids` with one image token per visual feature, `pixel_values` and `attention_mask`.

    Raises:
        ReleaseError: The folder is no such model.
        ModelError: It is a Bunny checkpoint that cannot be converted.
    """
    folder = Path(folder)
    if is_bunny(folder):
        with scratch_folder("bunny") as temporary:
            import_bunny(folder, temporary / "model")
            return load(temporary / "model")
    model, _, _ = load_bundle(folder)
    return model, LlavaProcessor.from_pretrained(folder)
