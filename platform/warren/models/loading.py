"""Loading a model of any layout that Warren writes."""

import tempfile
from pathlib import Path

from transformers import LlavaForConditionalGeneration, LlavaProcessor

from warren.models.bunny import import_bunny, is_bunny
from warren.models.saved import load_bundle


def load(folder: str | Path) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Load a model and its processor from a local folder: the LLaVA layout, or a whole Bunny checkpoint.

    The model takes `input_ids` with one image token per visual feature, `pixel_values` and `attention_mask`.

    Raises:
        ReleaseError: The folder is no such model.
        ModelError: It is a Bunny checkpoint that cannot be converted.
    """
    folder = Path(folder)
    if is_bunny(folder):
        with tempfile.TemporaryDirectory(prefix="warren-bunny-") as temporary:
            import_bunny(folder, Path(temporary) / "model")
            return load(Path(temporary) / "model")
    model, _, _ = load_bundle(folder)
    return model, LlavaProcessor.from_pretrained(folder)
