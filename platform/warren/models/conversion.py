"""Conversions from folder to folder: into and out of Bunny's layout, merging adapters, averaging two models."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from warren.errors import ModelError
from warren.models.bunny.exporter import export_bunny
from warren.models.bunny.importer import import_bunny, is_bunny
from warren.models.llava_layout import disk_name, expected_shapes, new_folder, read_model_config
from warren.models.lora_merge import ADAPTER_CONFIG, merged
from warren.models.tensors import LazyTensors, read_folder, write_tensors

ModelLayout = Literal["llava", "bunny"]


def export_model(layout: ModelLayout, source: Path, target: Path, dtype: torch.dtype | None = None) -> None:
    """Write a model in another layout; `llava` also takes a Bunny checkpoint that needs no base.

    Raises:
        ModelError: The model cannot be expressed in that layout.
    """
    if layout == "bunny":
        export_bunny(source, target, dtype)
    elif is_bunny(source):
        import_bunny(source, target, dtype=dtype or torch.float32)
    else:
        _rewritten(read_folder(source), source, target, dtype)


def merge_adapter(adapter: Path, base: Path, target: Path, vision_tower: Path | None = None) -> None:
    """Merge a LoRA adapter into the model it was trained from.

    A Bunny LoRA checkpoint and its language model give a whole model in the LLaVA layout, in float32. Any other adapter
    gives its base's layout and type; it uses transformers' names, as those that Warren trains do, or the names of the
    weights on disk. Sums are float32 and rounded once.

    Raises:
        ModelError: They do not fit each other.
    """
    if is_bunny(adapter):
        import_bunny(adapter, target, base=base, vision_tower=vision_tower)
        return
    if not (adapter / ADAPTER_CONFIG).is_file():
        raise ModelError(f"{adapter} has no {ADAPTER_CONFIG}: it is no LoRA adapter")
    rename = str if is_bunny(base) else partial(disk_name, config=read_model_config(base))
    _rewritten(merged(read_folder(base), adapter, rename, keep_dtype=True), base, target)


def average_models(first: Path, second: Path, weight: float, target: Path) -> None:
    """Average two models of one shape: `weight` of the first and the rest of the second, whose configuration is kept.

    Raises:
        ModelError: Their tensors differ in names or shapes, or the weight is not within 0 and 1.
    """
    if not 0.0 <= weight <= 1.0:
        raise ModelError(f"the weight of the first model is {weight}; it must be from 0 to 1")
    one, other = read_folder(first), read_folder(second)
    if one.keys() != other.keys():
        only = sorted(one.keys() ^ other.keys())
        raise ModelError(f"{first} and {second} are different models: {', '.join(only[:4])} is in one of them only")
    _rewritten({name: partial(_mean, name, one[name], other[name], weight) for name in other}, second, target)


def _mean(name: str, one: Callable[[], Tensor], other: Callable[[], Tensor], weight: float) -> Tensor:
    a, b = one(), other()
    if a.shape != b.shape:
        raise ModelError(f"{name} has shape {list(a.shape)} in the first model and {list(b.shape)} in the second")
    if not b.is_floating_point():
        return b
    return (a.float() * weight + b.float() * (1.0 - weight)).to(b.dtype)


def _rewritten(tensors: LazyTensors, like: Path, target: Path, dtype: torch.dtype | None = None) -> None:
    """Write tensors into a copy of another model's folder."""
    expected = None if is_bunny(like) else expected_shapes(read_model_config(like))
    with new_folder(target) as folder:
        for path in like.iterdir():
            if path.is_dir():
                shutil.copytree(path, folder / path.name)
            elif path.suffix not in (".safetensors", ".bin") and not path.name.endswith(".index.json"):
                shutil.copy(path, folder)
        write_tensors(tensors, folder, dtype, expected)
        if dtype is not None:
            _name_dtype(folder / "config.json", str(dtype).removeprefix("torch."))


def _name_dtype(file: Path, dtype: str) -> None:
    """Write the weights' new type into a config.json, because loaders follow it."""

    def changed(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {k: dtype if k in ("dtype", "torch_dtype") and v else changed(v) for k, v in value.items()}

    config = changed(json.loads(file.read_text()))
    file.write_text(json.dumps(config, indent=2) + "\n")
