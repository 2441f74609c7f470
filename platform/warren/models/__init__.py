"""The vision-language model: built from a recipe, saved and loaded in the Hugging Face LLaVA layout."""

from warren.models.saved import load, load_bundle, save_model
from warren.models.tokenizer import TrainedTokenizer, train_tokenizer
from warren.models.vlm import build_model, freeze_all_but, inputs_of

__all__ = [
    "TrainedTokenizer",
    "build_model",
    "freeze_all_but",
    "inputs_of",
    "load",
    "load_bundle",
    "save_model",
    "train_tokenizer",
]
