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
from warren.models.eva_clip import EvaClipVisionConfig
from warren.models.tensors import LazyTensors, read_file, read_folder

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

_KNOWN = ("siglip_vision_model", "clip_vision_model", EvaClipVisionConfig.model_type)
_EVA_WEIGHTS = ("eva_clip.safetensors", "eva_clip.pt")
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
                f"config.json names the vision tower {name!r}, which is nowhere here; give it as --vision-tower DIR"
            )
        return Tower(_auto_config(dict(_PUBLISHED[name])), _named(copy))
    trained = bool(config.get("unfreeze_vision_tower"))
    if trained and not copy:
        raise ModelError("config.json says unfreeze_vision_tower, but the checkpoint holds no vision tower")
    return Tower(_config(folder), _named(copy if trained else _read_tensors(folder)))


def _read_tensors(place: Path) -> LazyTensors:
    if place.is_file():
        return read_file(place)
    own = [place / name for name in _EVA_WEIGHTS if (place / name).is_file()]
    return read_file(own[0]) if own else read_folder(place)


def _find(source: Path, name: str) -> Path | None:
    """Look for the tower in and above the checkpoint; EVA-CLIP's `NAME.pt` may be a folder NAME."""
    source = source.resolve()
    names = [name, name.removesuffix(".pt")]
    roots = [Path(), source, *list(source.parents)[:3]]
    places = [source / OWN_FOLDER, *(root / name for name in names for root in roots)]
    return next((place for place in places if place.exists()), None)


def _config(place: Path) -> PretrainedConfig:
    folder = place if place.is_dir() else place.parent
    for file in (folder / "config.json", folder / "eva_config.json"):
        if file.is_file():
            try:
                fields = json.loads(file.read_text())
            except ValueError as error:
                raise ModelError(f"{file} is no JSON: {error}") from None
            if "vision_cfg" in fields:
                return _eva_config(fields["vision_cfg"])
            return _auto_config(fields.get("vision_config", fields))
    if place.is_file():
        return EvaClipVisionConfig()  # the published file: EVA02_CLIP_L_336_psz14_s6B.pt
    raise ModelError(f"the vision tower {place} is no folder with a config.json")


def _eva_config(fields: dict[str, Any]) -> EvaClipVisionConfig:
    """Read the `vision_cfg` of an EVA-CLIP configuration file."""
    missing = [key for key in ("rope", "naiveswiglu", "subln", "intp_freq") if not fields.get(key)]
    if missing:
        raise ModelError(f"this EVA-CLIP tower is of another kind than EVA-02's: {', '.join(missing)} not set")
    return EvaClipVisionConfig(
        hidden_size=fields["width"],
        intermediate_size=int(fields["width"] * fields["mlp_ratio"]),
        num_hidden_layers=fields["layers"],
        num_attention_heads=fields["width"] // fields["head_width"],
        image_size=fields["image_size"],
        patch_size=fields["patch_size"],
        pretrained_grid=fields["pt_hw_seq_len"],
    )


def _auto_config(fields: dict[str, Any]) -> PretrainedConfig:
    model_type = {"siglip": "siglip_vision_model", "clip": "clip_vision_model"}.get(
        str(fields.get("model_type")), fields.get("model_type")
    )
    if model_type not in _KNOWN:
        raise ModelError(f"the vision tower is a {model_type!r}; known are {', '.join(_KNOWN)}")
    dropped = ("model_type", "torch_dtype", "dtype", "transformers_version", "architectures")
    return AutoConfig.for_model(model_type, **{k: v for k, v in fields.items() if k not in dropped})


def _named(tensors: LazyTensors) -> LazyTensors:
    """Names below the tower's own prefix; a text tower beside it is left behind."""
    for prefix in ("vision_model.", "visual.", "model."):  # transformers 4; EVA-CLIP's file; EVA-CLIP in a checkpoint
        inner = {k.removeprefix(prefix): read for k, read in tensors.items() if k.startswith(prefix)}
        if inner:
            break
    return {k: read for k, read in (inner or tensors).items() if not k.endswith(_UNUSED) and not _eva_extra(k)}


def _eva_extra(name: str) -> bool:
    return "rope." in name or name in ("head.weight", "head.bias")
