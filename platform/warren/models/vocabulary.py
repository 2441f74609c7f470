"""The rows of a vocabulary: embeddings and head cut, grown and untied, by their names in the LLaVA layout."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from warren.errors import ModelError
from warren.models.tensors import LazyTensors

EMBEDDINGS = "language_model.model.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"


def untied(tensors: LazyTensors) -> LazyTensors:
    """Give a model that shares its embeddings with its head a head of its own."""
    return tensors if HEAD in tensors else {**tensors, HEAD: tensors[EMBEDDINGS]}


def with_vocabulary(tensors: LazyTensors, num_text_tokens: int, vocab_size: int) -> LazyTensors:
    """Cut the vocabulary to the tokenizer's, as Bunny does at load, and append rows for new tokens.

    The new rows are the mean of the others, so the head never prefers a new token to all old ones.
    """
    change = partial(_resize, num_text_tokens, vocab_size)
    return changed(tensors, dict.fromkeys((EMBEDDINGS, HEAD), change))


def changed(tensors: LazyTensors, changes: dict[str, Callable[[Tensor], Tensor]]) -> LazyTensors:
    """Return tensors of which some are changed when they are read.

    Raises:
        ModelError: One to change is missing.
    """
    missing = sorted(changes.keys() - tensors.keys())
    if missing:
        raise ModelError(f"the checkpoint lacks {', '.join(missing[:4])}")
    return {name: partial(_apply, changes[name], read) if name in changes else read for name, read in tensors.items()}


def _resize(num_text_tokens: int, vocab_size: int, tensor: Tensor) -> Tensor:
    rows = tensor.shape[0]
    if rows < num_text_tokens:
        raise ModelError(f"the vocabulary does not fit: {rows} rows of embeddings, {num_text_tokens} tokens")
    tensor = tensor[:num_text_tokens]
    new = vocab_size - num_text_tokens
    if new <= 0:
        return tensor[:vocab_size]
    mean = tensor.float().mean(dim=0, keepdim=True).to(tensor.dtype)
    return torch.cat([tensor, mean.expand(new, -1)])


def _apply(change: Callable[[Tensor], Tensor], read: Callable[[], Tensor]) -> Tensor:
    return change(read())
