"""The vocabulary of a checkpoint: embeddings and head are cut, extended and untied, by their LLaVA names."""

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


def num_rows(tensors: LazyTensors, name: str = EMBEDDINGS) -> int:
    """Return how many tokens a model has embeddings for.

    Raises:
        ModelError: It has no embeddings.
    """
    if name not in tensors:
        raise ModelError(f"the checkpoint lacks {name}")
    return int(tensors[name]().shape[0])


def with_vocabulary(tensors: LazyTensors, kept: int, vocab_size: int) -> LazyTensors:
    """Keep the first `kept` rows of the vocabulary, and append rows for new tokens (`with_rows`)."""
    change = partial(_resize, kept, vocab_size)
    return changed(tensors, dict.fromkeys((EMBEDDINGS, HEAD), change))


def with_rows(tensor: Tensor, num_rows: int) -> Tensor:
    """Append rows up to `num_rows`: the mean of the others, so that the head prefers no new token to all old ones."""
    new = num_rows - len(tensor)
    if new <= 0:
        return tensor
    mean = tensor.float().mean(dim=0, keepdim=True).to(tensor.dtype)
    return torch.cat([tensor, mean.expand(new, -1)])


def scaled_head(tensors: LazyTensors, factor: float, keep_dtype: bool = False) -> LazyTensors:
    """Multiply the head by a factor, in float32; `keep_dtype` rounds it to its own type again."""
    return tensors if factor == 1.0 else changed(tensors, {HEAD: partial(_scale, factor, keep_dtype)})


def changed(tensors: LazyTensors, changes: dict[str, Callable[[Tensor], Tensor]]) -> LazyTensors:
    """Return tensors of which some are changed when they are read.

    Raises:
        ModelError: One to change is missing.
    """
    missing = sorted(changes.keys() - tensors.keys())
    if missing:
        raise ModelError(f"the checkpoint lacks {', '.join(missing[:4])}")
    return {name: partial(_apply, changes[name], read) if name in changes else read for name, read in tensors.items()}


def _resize(kept: int, vocab_size: int, tensor: Tensor) -> Tensor:
    rows = tensor.shape[0]
    if rows < kept:
        raise ModelError(f"the vocabulary does not fit: {rows} rows of embeddings, {kept} tokens")
    return with_rows(tensor[:kept], vocab_size)[:vocab_size]


def _scale(factor: float, keep_dtype: bool, tensor: Tensor) -> Tensor:
    scaled = tensor.float() * factor
    return scaled.to(tensor.dtype) if keep_dtype else scaled


def _apply(change: Callable[[Tensor], Tensor], read: Callable[[], Tensor]) -> Tensor:
    return change(read())
