"""Which vision tower a Bunny checkpoint means: its configuration, its weights, and where they come from.

Bunny ignores the tower inside a checkpoint unless it was trained (`unfreeze_vision_tower`), and reads the folder or the
hub id in `mm_vision_tower` instead. A folder is recognised by its own files, never by its name.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from warren.errors import ModelError
from warren.models.tensors import LazyTensors, read_folder

OWN_FOLDER = "vision_tower"
"""Where Warren's Bunny export puts the tower, so that the folder is complete without a hub."""

_PUBLISHED: dict[str, dict[str, Any]] = {  # towers whose weights every merged checkpoint carries a copy of
    "google/siglip-so400m-patch14-384": {
        "model_type": "siglip_vision_model",
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_hidden_layers": 27,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 14,
    },
    "openai/clip-vit-large-patch14-336": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 768,
    },
}

_COPY = "model.vision_tower.vision_tower."  # of the tower, in a checkpoint
_UNUSED = ("position_ids",)  # buffers that old versions saved


@dataclass(frozen=True)
class Tower:
    """A vision tower on its way into the LLaVA layout.

    Attributes:
        config: Its transformers configuration.
        tensors: By names below `vision_tower.vision_model.`.
    """

    config: PretrainedConfig
    tensors: LazyTensors


def read_tower(source: Path, config: dict[str, Any], checkpoint: LazyTensors, given: Path | None) -> Tower:
    """Return the tower that Bunny would use.

    Args:
        source: The checkpoint's folder; relative tower names are looked for in it and above it.
        config: The checkpoint's config.json.
        checkpoint: Its tensors, by Bunny's names.
        given: A tower folder to use instead of the one the configuration names.

    Raises:
        ModelError: The tower is nowhere to be found, or of an unknown kind.
    """
    name = str(config.get("mm_vision_tower"))
    folder = given or _find(source, name)
    copy = {k.removeprefix(_COPY): read for k, read in checkpoint.items() if k.startswith(_COPY)}
    if folder is None:
        if name not in _PUBLISHED or not copy:
            raise ModelError(
                f"config.json names the vision tower {name!r}, which is no folder here; give it as --vision-tower DIR"
            )
        return Tower(_auto_config(dict(_PUBLISHED[name])), _named(copy))
    if not folder.is_dir():
        raise ModelError(f"the vision tower {folder} is no folder")
    trained = bool(config.get("unfreeze_vision_tower"))
    if trained and not copy:
        raise ModelError("config.json says unfreeze_vision_tower, but the checkpoint holds no vision tower")
    return Tower(_config(folder), _named(copy if trained else read_folder(folder)))


def _find(source: Path, name: str) -> Path | None:
    source = source.resolve()
    places = [source / OWN_FOLDER, Path(name), *(folder / name for folder in (source, *list(source.parents)[:3]))]
    return next((place for place in places if place.is_dir()), None)


def _config(folder: Path) -> PretrainedConfig:
    try:
        fields = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"the vision tower {folder} has no readable config.json: {error}") from None
    return _auto_config(fields.get("vision_config", fields))


def _auto_config(fields: dict[str, Any]) -> PretrainedConfig:
    model_type = {"siglip": "siglip_vision_model", "clip": "clip_vision_model"}.get(
        str(fields.get("model_type")), fields.get("model_type")
    )
    if model_type not in ("siglip_vision_model", "clip_vision_model"):
        raise ModelError(f"the vision tower is a {model_type!r}; known are siglip_vision_model, clip_vision_model")
    dropped = ("model_type", "torch_dtype", "dtype", "transformers_version", "architectures")
    return AutoConfig.for_model(model_type, **{k: v for k, v in fields.items() if k not in dropped})


def _named(tensors: LazyTensors) -> LazyTensors:
    """Names below `vision_model.`, which transformers 5 leaves out; a text tower beside it is left behind."""
    inner = {k.removeprefix("vision_model."): read for k, read in tensors.items() if k.startswith("vision_model.")}
    return {k: read for k, read in (inner or tensors).items() if not k.endswith(_UNUSED)}
