"""Changes of single tensors on the way in and out: vocabulary rows and MiniCPM's factors."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from warren.errors import ModelError
from warren.models.bunny.names import EMBEDDINGS, HEAD
from warren.models.tensors import LazyTensors

_BRANCHES = (".self_attn.o_proj.weight", ".mlp.down_proj.weight")


def untied(tensors: LazyTensors) -> LazyTensors:
    """Give a model that shares its embeddings with its head a head of its own."""
    return tensors if HEAD in tensors else {**tensors, HEAD: tensors[EMBEDDINGS]}


def with_vocabulary(tensors: LazyTensors, num_text_tokens: int, vocab_size: int) -> LazyTensors:
    """Cut the vocabulary to the tokenizer's, as Bunny does at load, and append rows for new tokens.

    The new rows are the mean of the others, so the head never prefers a new token to all old ones.
    """
    change = partial(_resize, num_text_tokens, vocab_size)
    return _changed(tensors, dict.fromkeys((EMBEDDINGS, HEAD), change))


def folded(tensors: LazyTensors, scales: tuple[float, float, float], projector: tuple[str, ...]) -> LazyTensors:
    """Fold MiniCPM's factors into the weights: the result is a plain Llama with the same logits (exact in theory).

    Args:
        tensors: By LLaVA names.
        scales: Of embeddings (image features too), of residual branches, divisor of logits; see `scales_of`.
        projector: The weight and bias that decide the scale of image features.
    """
    embeddings, branch, logits = scales
    factors = {name: branch for name in tensors if name.endswith(_BRANCHES) and name.startswith("language_model.")}
    factors |= dict.fromkeys((EMBEDDINGS, *projector), embeddings) | {HEAD: 1.0 / logits}
    return _changed(tensors, {name: partial(_scale, factor) for name, factor in factors.items()})


def unfolded(tensors: LazyTensors, scales: tuple[float, float, float], projector: tuple[str, ...]) -> LazyTensors:
    """Undo `folded`."""
    embeddings, branch, logits = scales
    return folded(tensors, (1.0 / embeddings, 1.0 / branch, 1.0 / logits), projector)


def _scale(factor: float, tensor: Tensor) -> Tensor:
    return tensor.float() * factor


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


def _changed(tensors: LazyTensors, changes: dict[str, Callable[[Tensor], Tensor]]) -> LazyTensors:
    missing = sorted(changes.keys() - tensors.keys())
    if missing:
        raise ModelError(f"the checkpoint lacks {', '.join(missing[:4])}")
    return {name: partial(_apply, changes[name], read) if name in changes else read for name, read in tensors.items()}


def _apply(change: Callable[[Tensor], Tensor], read: Callable[[], Tensor]) -> Tensor:
    return change(read())
