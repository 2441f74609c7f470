"""LoRA adapters as PEFT writes them, merged into the weights they belong to, one tensor at a time."""

import json
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from warren.errors import ModelError
from warren.models.tensors import LazyTensors, read_either

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."
"""PEFT's wrapper around the model it adapts; every name in its files starts with it."""

_UNSUPPORTED = ("use_dora", "layer_replication", "megatron_config")


def merged(base: LazyTensors, adapter: Path, rename: Callable[[str], str] = str) -> LazyTensors:
    """Return the base tensors with a folder's adapter added: W + scale · B·A.

    Args:
        base: By the names the adapter was trained with, or those that `rename` makes of them.
        adapter: A folder with `adapter_config.json` and `adapter_model.safetensors` (or `.bin`).
        rename: From the adapter's names to the base's.

    Raises:
        ModelError: The adapter is of another kind, incomplete, or names weights the base does not have.
    """
    config = _config(adapter)
    found = read_either(adapter, "adapter_model")
    tensors = {rename(name.removeprefix(PEFT_PREFIX)): read for name, read in found.items()}
    result = dict(base)
    for name, read in tensors.items():
        if ".lora_A." in name:
            module, target = _target(name, base)
            other = tensors.get(name.replace(".lora_A.", ".lora_B."))
            if other is None:
                raise ModelError(f"{adapter}: {name} has no lora_B")
            result[target] = partial(_add, base[target], read, other, config, module)
        elif ".lora_B." not in name:  # biases and modules trained whole
            plain = (
                name.replace(".modules_to_save.default", "").replace(".modules_to_save", "").replace(".base_layer", "")
            )
            if plain not in base or ".lora_" in name:
                raise ModelError(f"{adapter}: {name} is nothing that can be merged into this base")
            result[plain] = read
    return result


def adapted(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Return a layer's weight [out, in] with its adapter added: W + scale · B·A, in float32, in the weight's dtype."""
    result: Tensor = (weight.float() + (b.float() @ a.float()) * scale).to(weight.dtype)
    return result


def _config(adapter: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((adapter / ADAPTER_CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{adapter} has no readable {ADAPTER_CONFIG}: {error}") from None
    wrong = [key for key in _UNSUPPORTED if config.get(key)]
    if config.get("peft_type") != "LORA" or wrong:
        raise ModelError(f"{adapter}: only plain LoRA can be merged, this is {config.get('peft_type')} {wrong or ''}")
    return config


def _target(name: str, base: LazyTensors) -> tuple[str, str]:
    module = name.split(".lora_A.")[0]
    for target in (f"{module}.weight", f"{module}.base_layer.weight"):
        if target in base:
            return module, target
    raise ModelError(f"the adapter changes {module}, which the base does not have")


def _add(read: Any, read_a: Any, read_b: Any, config: dict[str, Any], module: str) -> Tensor:
    weight, a, b = read(), read_a().float(), read_b().float()
    rank = _of_module(config.get("rank_pattern"), module, a.shape[0])
    alpha = _of_module(config.get("alpha_pattern"), module, config["lora_alpha"])
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    if config.get("fan_in_fan_out"):
        a, b = b.T, a.T
    if (b.shape[0], a.shape[1]) != tuple(weight.shape):
        shape = [b.shape[0], a.shape[1]]
        raise ModelError(f"the adapter of {module} is {shape}, the base's weight {list(weight.shape)}")
    return adapted(weight, a, b, scale)


def _of_module(patterns: dict[str, float] | None, module: str, default: float) -> float:
    return next((v for key, v in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", module)), default)
