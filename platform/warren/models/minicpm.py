"""MiniCPM is a Llama whose embeddings, residual branches and logits are scaled.

transformers has no class for it. A checkpoint's factors fold into a plain Llama's weights, exactly, and out of them
again. For training from its weights the factors stay factors, in a Granite, so that Adam's steps are Bunny's.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from warren.errors import ModelError
from warren.models.tensors import LazyTensors
from warren.models.vocabulary import EMBEDDINGS, HEAD, changed

_BRANCHES = tuple(f".{layer}.{kind}" for layer in ("self_attn.o_proj", "mlp.down_proj") for kind in ("weight", "bias"))


SCALES = ("scale_emb", "scale_depth", "dim_model_base")


def scales_of(source: Mapping[str, Any]) -> tuple[float, float, float]:
    """Return MiniCPM's factors: of embeddings, of each residual branch, and the divisor of the logits.

    Raises:
        ModelError: The configuration lacks one.
    """
    missing = [key for key in SCALES if key not in source]
    if missing:
        raise ModelError(f"config.json of a MiniCPM lacks {', '.join(missing)}")
    return (
        float(source["scale_emb"]),
        float(source["scale_depth"]) / math.sqrt(source["num_hidden_layers"]),
        source["hidden_size"] / source["dim_model_base"],
    )


def granite_fields(source: Mapping[str, Any]) -> dict[str, Any]:
    """Return a MiniCPM's configuration as a Granite's. LLaVA's head ignores `logits_scaling`: fold it into the head."""
    embeddings, branch, logits = scales_of(source)
    return {
        **{key: value for key, value in source.items() if key not in SCALES},
        "embedding_multiplier": embeddings,
        "residual_multiplier": branch,
        "attention_multiplier": (source["hidden_size"] / source["num_attention_heads"]) ** -0.5,
        "logits_scaling": logits,
    }


def minicpm_fields(granite: Mapping[str, Any]) -> dict[str, Any]:
    """Undo `granite_fields`: a Granite's configuration as a MiniCPM's. The head has the divisor of the logits in it.

    Raises:
        ModelError: It scales its attention otherwise.
    """
    usual = (granite["hidden_size"] / granite["num_attention_heads"]) ** -0.5
    if not math.isclose(granite["attention_multiplier"], usual, rel_tol=1e-6):
        raise ModelError(
            f"attention_multiplier is {granite['attention_multiplier']}; a MiniCPM of this size has {usual}"
        )
    names = ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling")
    return {
        **{key: value for key, value in granite.items() if key not in names},
        "scale_emb": granite["embedding_multiplier"],
        "scale_depth": granite["residual_multiplier"] * math.sqrt(granite["num_hidden_layers"]),
        "dim_model_base": granite["hidden_size"],
    }


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
    return changed(tensors, {name: partial(_scale, factor) for name, factor in factors.items()})


def unfolded(tensors: LazyTensors, scales: tuple[float, float, float], projector: tuple[str, ...]) -> LazyTensors:
    """Undo `folded`."""
    embeddings, branch, logits = scales
    return folded(tensors, (1.0 / embeddings, 1.0 / branch, 1.0 / logits), projector)


def _scale(factor: float, tensor: Tensor) -> Tensor:
    return tensor.float() * factor
