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


def merged(
    base: LazyTensors,
    adapter: Path,
    rename: Callable[[str], str] = str,
    keep_dtype: bool = False,
    ignored: tuple[str, ...] = (),
) -> LazyTensors:
    """Return the base tensors with a folder's adapter added: W + scale · B·A, in float32.

    Args:
        base: By the names the adapter was trained with, or those that `rename` makes of them.
        adapter: A folder with `adapter_config.json` and `adapter_model.safetensors` (or `.bin`).
        rename: From the adapter's names to the base's.
        keep_dtype: Round what the adapter changes to the base's type, once, after it is added.
        ignored: Prefixes of plain weights in the adapter that the base may lack.

    Raises:
        ModelError: The adapter is of another kind, incomplete, or names weights the base does not have.
    """
    config = _config(adapter)
    adapter_tensors = read_either(adapter, "adapter_model")
    tensors = {rename(unwrapped(name)): read for name, read in adapter_tensors.items()}
    result = dict(base)
    for name, read in tensors.items():
        if ".lora_A." in name:
            module = name.split(".lora_A.")[0]
            target = f"{module}.weight"
            if target not in base:
                raise ModelError(f"the adapter {adapter} changes {module}, which the base does not have")
            other = tensors.get(name.replace(".lora_A.", ".lora_B."))
            if other is None:
                raise ModelError(f"{adapter}: {name} has no lora_B")
            result[target] = partial(_add, base[target], read, other, config, module, keep_dtype)
        elif ".lora_B." not in name:  # biases and modules trained whole
            if name not in base and name.startswith(ignored):
                continue
            if name not in base or ".lora_" in name:
                raise ModelError(f"{adapter}: {name} is nothing that can be merged into this base")
            result[name] = partial(_as, read, base[name]) if keep_dtype else read
    return result


def unwrapped(name: str) -> str:
    """Return the name in the model of a tensor in PEFT's files, without what PEFT puts in front and in between."""
    for wrapper in (".modules_to_save.default", ".modules_to_save", ".base_layer"):
        name = name.replace(wrapper, "")
    return name.removeprefix(PEFT_PREFIX)


def adapted(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Return a layer's weight [out, in] with its adapter added, W + scale · B·A, in float32; the caller rounds it."""
    result: Tensor = weight.float() + (b.float() @ a.float()) * scale
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


def _add(read: Any, read_a: Any, read_b: Any, config: dict[str, Any], module: str, keep_dtype: bool) -> Tensor:
    weight, a, b = read(), read_a().float(), read_b().float()
    rank = _of_module(config.get("rank_pattern"), module, a.shape[0])
    alpha = _of_module(config.get("alpha_pattern"), module, config["lora_alpha"])
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    if config.get("fan_in_fan_out"):
        a, b = b.T, a.T
    if (b.shape[0], a.shape[1]) != tuple(weight.shape):
        shape = [b.shape[0], a.shape[1]]
        raise ModelError(f"the adapter of {module} is {shape}, the base's weight {list(weight.shape)}")
    result = adapted(weight, a, b, scale)
    return result.to(weight.dtype) if keep_dtype else result


def _as(read: Callable[[], Tensor], like: Callable[[], Tensor]) -> Tensor:
    return read().to(like().dtype)


def _of_module(patterns: dict[str, float] | None, module: str, default: float) -> float:
    return next((v for key, v in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", module)), default)
