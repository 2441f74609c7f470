"""MiniCPM is a Llama whose embeddings, residual branches and logits are scaled: transformers' Granite.

A Granite has the same matrices and multiplies by the factors itself, so logits and Adam's steps are MiniCPM's. The
divisor of the logits is the exception: LLaVA's head has none, so the head on disk carries it (`models/head.py`).
"""

import math
from collections.abc import Mapping
from typing import Any

from warren.errors import ModelError

SCALES = ("scale_emb", "scale_depth", "dim_model_base")
TIED = True
"""Whether MiniCPM's head is its embeddings where config.json does not say."""

_MULTIPLIERS = ("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling")


def check_minicpm(config: Any) -> None:
    """Refuse a MiniCPM that an earlier version of Warren imported as a Llama: it would train differently.

    Raises:
        ModelError: It is one.
    """
    source = getattr(config, "bunny_config", None) or {}
    if source.get("model_type") == "bunny-minicpm" and config.text_config.model_type != "granite":
        raise ModelError(
            "this MiniCPM was imported by an earlier version, with its factors in the weights, so it would train "
            "otherwise than Bunny's: import the checkpoint again"
        )


def granite_fields(source: Mapping[str, Any]) -> dict[str, Any]:
    """Return a MiniCPM's configuration as a Granite's.

    Raises:
        ModelError: A factor is missing.
    """
    missing = [key for key in SCALES if key not in source]
    if missing:
        raise ModelError(f"config.json of a MiniCPM lacks {', '.join(missing)}")
    return {
        "tie_word_embeddings": TIED,
        **{key: value for key, value in source.items() if key not in SCALES},
        "embedding_multiplier": float(source["scale_emb"]),
        "residual_multiplier": float(source["scale_depth"]) / math.sqrt(source["num_hidden_layers"]),
        "attention_multiplier": (source["hidden_size"] / source["num_attention_heads"]) ** -0.5,
        "logits_scaling": source["hidden_size"] / source["dim_model_base"],
    }


def minicpm_fields(granite: Mapping[str, Any], divisor: float) -> dict[str, Any]:
    """Undo `granite_fields`: a Granite's configuration as a MiniCPM's.

    Args:
        granite: The decoder's configuration.
        divisor: Of the logits, which the head on disk carries.

    Raises:
        ModelError: It scales its attention otherwise.
    """
    usual = (granite["hidden_size"] / granite["num_attention_heads"]) ** -0.5
    if not math.isclose(granite["attention_multiplier"], usual, rel_tol=1e-6):
        raise ModelError(
            f"attention_multiplier is {granite['attention_multiplier']}; a MiniCPM of this size has {usual}"
        )
    base = granite["hidden_size"] / divisor
    return {
        **{key: value for key, value in granite.items() if key not in _MULTIPLIERS},
        "scale_emb": granite["embedding_multiplier"],
        "scale_depth": granite["residual_multiplier"] * math.sqrt(granite["num_hidden_layers"]),
        "dim_model_base": round(base) if math.isclose(base, round(base), rel_tol=1e-6) else base,
    }
