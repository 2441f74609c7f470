"""LoRA adapters of a model in training: added, recognised by name, and saved merged or alone.

PEFT injects them in place, so names in memory change in one way only: an adapted layer `X` holds `X.base_layer.weight`,
`X.lora_A.default.weight` and `X.lora_B.default.weight`. `merged_state` and `save_adapter` are the two ways back.
"""

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from warren.config import LoraConfig, ModelPart
from warren.models.lora_merge import ADAPTER_WEIGHTS, PEFT_PREFIX, adapted

LANGUAGE_MODEL = "model.language_model"
_WHOLE_MODULES: dict[ModelPart, str] = {"projector": "multi_modal_projector", "vision_tower": "vision_tower"}
_BASE = ".base_layer."
_A, _B = ".lora_A.default.", ".lora_B.default."


def add_adapters(model: nn.Module, config: LoraConfig, seed: int) -> None:
    """Put adapters on every linear layer of the language model but its head, in place.

    They start at zero, so the model's output does not change. The layers are named by one regular expression over whole
    module names: names such as `q_proj` alone would match the vision tower's layers too, as in Bunny's continuous
    training.

    Args:
        model: The model with its initial weights.
        seed: The same on every rank.
    """
    from peft import LoraConfig as PeftLoraConfig  # here, because it takes a second and few runs train adapters
    from peft import inject_adapter_in_model

    torch.manual_seed(seed)
    settings = PeftLoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        bias="none",
        target_modules=_targets(model),
        task_type="CAUSAL_LM",
    )
    inject_adapter_in_model(settings, model)


def has_adapters(model: nn.Module) -> bool:
    """Tell whether `add_adapters` was called on a model."""
    return hasattr(model, "peft_config")


def is_adapter(parameter_name: str) -> bool:
    """Tell whether a parameter belongs to an adapter."""
    return _A in parameter_name or _B in parameter_name


def merged_state(state: Mapping[str, Tensor], config: LoraConfig) -> dict[str, Tensor]:
    """Return a model's state with its adapters merged, under the names of a model without adapters.

    Args:
        state: The state of a model with adapters.
        config: The configuration that the adapters were added with.
    """
    merged: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if is_adapter(name):
            continue
        adapter_a = state.get(name.replace(_BASE, _A)) if _BASE in name else None
        if adapter_a is not None:
            weight, a, b = (t.detach().cpu() for t in (tensor, adapter_a, state[name.replace(_BASE, _B)]))
            tensor = adapted(weight, a, b, config.alpha / config.rank).to(weight.dtype)
        merged[name.replace(_BASE, ".")] = tensor
    return merged


def save_adapter(
    state: Mapping[str, Tensor], model: nn.Module, trainable: tuple[ModelPart, ...], base: str | None, folder: Path
) -> None:
    """Write adapters in PEFT's layout, with the other parts that were trained as its `modules_to_save`.

    `PeftModel.from_pretrained` loads it onto the model the stage started from, and `merge_adapter` merges it.

    Args:
        state: The model's full state, by in-memory names.
        model: The model with its adapters; only its settings are read.
        trainable: The parts that trained.
        base: Where the model the stage started from is, for readers of adapter_config.json.
        folder: An existing local folder.
    """
    whole = tuple(module for part, module in _WHOLE_MODULES.items() if part in trainable)
    prefixes = tuple(f"model.{module}." for module in whole)
    kept = {name: tensor for name, tensor in state.items() if is_adapter(name) or name.startswith(prefixes)}
    tensors = {
        PEFT_PREFIX + name.replace(".default.", "."): tensor.detach().cpu().contiguous()
        for name, tensor in kept.items()
    }
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    settings: Any = copy.copy(model.peft_config["default"])  # type: ignore[index]
    settings.inference_mode = True
    settings.modules_to_save = list(whole) or None
    settings.base_model_name_or_path = base
    settings.save_pretrained(folder)


def _targets(model: nn.Module) -> str:
    """Return the regular expression that fits the language model's linear layers and nothing else."""
    decoder = model.get_submodule(LANGUAGE_MODEL)
    kinds = {name.rsplit(".", 1)[-1] for name, module in decoder.named_modules() if isinstance(module, nn.Linear)}
    return rf"{re.escape(LANGUAGE_MODEL)}\.(.+\.)?({'|'.join(sorted(kinds))})"
