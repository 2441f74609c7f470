"""LoRA adapters as PEFT writes them, merged into the weights they belong to, one tensor at a time."""

import json
import math
import re
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from warren.errors import ModelError
from warren.models.tensors import LazyTensors, read_either

ADAPTER_CONFIG = "adapter_config.json"
_PREFIX = "base_model.model."
_UNSUPPORTED = ("use_dora", "layer_replication", "megatron_config")


def merged(base: LazyTensors, adapter: Path) -> LazyTensors:
    """Return the base tensors with a folder's adapter added: W + scale · B·A.

    Args:
        base: By the names the adapter was trained with.
        adapter: A folder with `adapter_config.json` and `adapter_model.safetensors` (or `.bin`).

    Raises:
        ModelError: The adapter is of another kind, incomplete, or names weights the base does not have.
    """
    config = _config(adapter)
    tensors = {name.removeprefix(_PREFIX): read for name, read in read_either(adapter, "adapter_model").items()}
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
    change = (b @ a) * scale
    change = change.T if config.get("fan_in_fan_out") else change
    if change.shape != weight.shape:
        raise ModelError(f"the adapter of {module} is {list(change.shape)}, the base's weight {list(weight.shape)}")
    merged_weight: Tensor = (weight.float() + change).to(weight.dtype)
    return merged_weight


def _of_module(patterns: dict[str, float] | None, module: str, default: float) -> float:
    return next((v for key, v in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", module)), default)
