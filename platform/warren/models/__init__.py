"""The vision-language model: built from a recipe, saved and loaded in the Hugging Face LLaVA layout."""

from warren.data.model_inputs import TrainedTokenizer
from warren.models.adapters import add_adapters
from warren.models.bunny import export_bunny, import_bunny
from warren.models.conversion import average_models, export_model, merge_adapter
from warren.models.head import unfold_head
from warren.models.llava_layout import load_bundle, read_model_config, save_model
from warren.models.loading import load
from warren.models.pretrained import folder_of
from warren.models.tokenizer import read_tokenizer, train_tokenizer
from warren.models.vlm import build_model, freeze_all_but, inputs_of

__all__ = [
    "TrainedTokenizer",
    "add_adapters",
    "average_models",
    "build_model",
    "export_bunny",
    "export_model",
    "folder_of",
    "freeze_all_but",
    "import_bunny",
    "inputs_of",
    "load",
    "load_bundle",
    "merge_adapter",
    "read_model_config",
    "read_tokenizer",
    "save_model",
    "train_tokenizer",
    "unfold_head",
]
