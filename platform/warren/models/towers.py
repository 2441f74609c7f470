"""A vision tower on disk: its configuration and its tensors, whatever layout the folder has."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from warren.errors import ModelError
from warren.models.eva_clip import EvaClipVisionConfig
from warren.models.tensors import LazyTensors, read_file, read_folder

MODEL_TYPES = {
    "siglip": "siglip_vision_model",
    "clip": "clip_vision_model",
    "eva-clip": EvaClipVisionConfig.model_type,
    "dinov2": "dinov2",
}
"""transformers' name of each family a recipe may name."""

_EVA_WEIGHTS = ("eva_clip.safetensors", "eva_clip.pt")
_UNUSED = ("position_ids",)  # buffers that old versions saved


Channels = tuple[float, float, float]
Normalisation = tuple[Channels, Channels]
"""Mean and standard deviation of each channel, for values from 0 to 1."""

PROCESSOR_FILE = "preprocessor_config.json"
_SIZED = ("siglip_vision_model", "clip_vision_model")  # Warren resizes as their processors do, but for other settings
_BICUBIC = 3


@dataclass(frozen=True)
class TowerFolder:
    """A vision tower on its way into a model.

    Attributes:
        config: Its transformers configuration.
        tensors: By names below `vision_tower.vision_model.`.
        normalisation: Mean and standard deviation of its processor; None: its family's.
    """

    config: PretrainedConfig
    tensors: LazyTensors
    normalisation: Normalisation | None = None


def read_tower_folder(place: Path) -> TowerFolder:
    """Read a tower's folder, or EVA-CLIP's weights file.

    Raises:
        ModelError: It is incomplete, damaged, or of an unknown kind.
    """
    config = tower_config(place)
    return TowerFolder(config, tower_tensors(_read_tensors(place)), normalisation(place, config))


def tower_config(place: Path) -> PretrainedConfig:
    """Read a tower's configuration; one inside a whole CLIP's or SigLIP's counts."""
    folder = place if place.is_dir() else place.parent
    for file in (folder / "config.json", folder / "eva_config.json"):
        if file.is_file():
            try:
                fields = json.loads(file.read_text())
            except ValueError as error:
                raise ModelError(f"{file} is no JSON: {error}") from None
            if "vision_cfg" in fields:
                return _eva_config(fields["vision_cfg"], fields.get("embed_dim"))
            return known_config(fields.get("vision_config", fields))
    if place.is_file():
        return EvaClipVisionConfig()  # the published file: EVA02_CLIP_L_336_psz14_s6B.pt
    raise ModelError(f"the vision tower {place} is no folder with a config.json")


def normalisation(place: Path, config: PretrainedConfig) -> Normalisation | None:
    """Return mean and standard deviation of the processor in a tower's folder; None without one, and for EVA-CLIP.

    Raises:
        ModelError: The processor prepares images in a way that Warren does not support.
    """
    file = (place if place.is_dir() else place.parent) / PROCESSOR_FILE
    if not file.is_file() or isinstance(config, EvaClipVisionConfig):  # Bunny's EVA-CLIP reads no file
        return None
    try:
        fields = json.loads(file.read_text())
    except ValueError as error:
        raise ModelError(f"{file} is no JSON: {error}") from None
    wrong = [f"{key} is {fields[key]!r}" for key in _differing(fields, config)]
    if wrong:
        raise ModelError(
            f"{file}: {', '.join(wrong)}; a {config.model_type} of {config.image_size} px gets its images resized to "
            "that size by bicubic interpolation, scaled to 0..1 and normalised: mend the file, or name another folder"
        )
    mean, std = fields.get("image_mean"), fields.get("image_std")
    if mean is None or std is None:
        return None
    return _channels(file, "image_mean", mean), _channels(file, "image_std", std)


def _differing(fields: dict[str, Any], config: PretrainedConfig) -> list[str]:
    """Return the settings of a processor that Warren does not follow."""
    wrong = [key for key in ("do_resize", "do_rescale", "do_normalize") if fields.get(key) is False]
    if not math.isclose(fields.get("rescale_factor") or 1 / 255, 1 / 255, rel_tol=1e-6):
        wrong.append("rescale_factor")
    if config.model_type in _SIZED:
        if fields.get("resample") not in (None, _BICUBIC):
            wrong.append("resample")
        if config.model_type != _SIZED[0] and fields.get("do_center_crop") is False:
            wrong.append("do_center_crop")
        cropped = ("crop_size",) if config.model_type != _SIZED[0] else ()
        for key in ("size", *cropped):
            size = fields.get(key) or config.image_size
            sides = size.values() if isinstance(size, dict) else (size,)
            if any(side != config.image_size for side in sides):
                wrong.append(key)
    return wrong


def _channels(file: Path, key: str, values: Any) -> Channels:
    if not isinstance(values, list) or len(values) != 3 or not all(isinstance(v, int | float) for v in values):
        raise ModelError(f"{file}: {key} is {values!r}; it must be three numbers")
    return float(values[0]), float(values[1]), float(values[2])


def _eva_config(fields: dict[str, Any], projection_dim: int | None) -> EvaClipVisionConfig:
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
        **({} if projection_dim is None else {"projection_dim": projection_dim}),
    )


def known_config(fields: Mapping[str, Any]) -> PretrainedConfig:
    """Build the configuration of one of the known kinds of tower.

    Raises:
        ModelError: The kind is unknown, or its fields are not that kind's.
    """
    model_type = MODEL_TYPES.get(str(fields.get("model_type")), fields.get("model_type"))
    if model_type not in MODEL_TYPES.values():
        raise ModelError(f"the vision tower is a {model_type!r}; known are {', '.join(MODEL_TYPES.values())}")
    dropped = ("model_type", "torch_dtype", "dtype", "transformers_version", "architectures")
    try:
        return AutoConfig.for_model(model_type, **{k: v for k, v in fields.items() if k not in dropped})
    except (TypeError, ValueError) as error:
        raise ModelError(f"this is no configuration of a {model_type}: {error}") from None


def tower_tensors(tensors: LazyTensors) -> LazyTensors:
    """Return the tower's tensors without its prefix, and without those of a text tower beside it."""
    for prefix in ("vision_model.", "visual.", "model."):  # transformers 4; EVA-CLIP's file; EVA-CLIP in a checkpoint
        inner = {k.removeprefix(prefix): read for k, read in tensors.items() if k.startswith(prefix)}
        if inner:
            break
    return {k: read for k, read in (inner or tensors).items() if not k.endswith(_UNUSED) and not _eva_extra(k)}


def _eva_extra(name: str) -> bool:
    return "rope." in name or name in ("head.weight", "head.bias")


def _read_tensors(place: Path) -> LazyTensors:
    if place.is_file():
        return read_file(place)
    own = [place / name for name in _EVA_WEIGHTS if (place / name).is_file()]
    return read_file(own[0]) if own else read_folder(place)
