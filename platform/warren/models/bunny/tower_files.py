"""A vision tower as Bunny's encoders read it: a folder for SigLIP and CLIP, one pickle for EVA-CLIP.

Bunny chooses the encoder by the path in `mm_vision_tower`: `sig`, `eva` or `clip` in it, in this order.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from warren.data.images import ImageSpec
from warren.models.bunny.configuration import SIGLIP
from warren.models.eva_clip import EvaClipVisionConfig, rotary
from warren.models.tensors import LazyTensors, write_tensors

OWN_FOLDER = "vision_tower"
"""Where Warren's Bunny export puts the tower, so that the folder is complete without a hub."""

OWN_TOWERS = {
    SIGLIP: f"{OWN_FOLDER}/siglip",
    "clip_vision_model": f"{OWN_FOLDER}/clip",
    EvaClipVisionConfig.model_type: f"{OWN_FOLDER}/eva_clip.pt",
}
"""By `model_type`, from the exported folder, in which Bunny is to be started."""


def write_tower(
    vision: PretrainedConfig, tensors: LazyTensors, image: ImageSpec, folder: Path, dtype: torch.dtype | None
) -> None:
    """Write a tower below an exported folder.

    Args:
        vision: The tower's configuration.
        tensors: By names below `vision_tower.vision_model.`.
        image: What its images are normalised with.
        folder: The exported folder.
        dtype: Of the weights written; None keeps theirs.
    """
    place = folder / OWN_TOWERS[vision.model_type]
    if isinstance(vision, EvaClipVisionConfig):
        place.parent.mkdir()
        write_tensors(tensors, place.parent, dtype, max_shard_bytes=1 << 62)
        _to_pickle(place)
        write_json(place.parent / "eva_config.json", _eva_fields(vision))
        return
    place.mkdir(parents=True)
    vision.save_pretrained(place)
    write_json(place / "preprocessor_config.json", _processor(vision, image))
    write_tensors({f"vision_model.{name}": read for name, read in tensors.items()}, place, dtype)


def with_eva_extras(vision: PretrainedConfig, tensors: LazyTensors) -> LazyTensors:
    """Add what Bunny's EVA-CLIP holds beyond what it uses, as it loads a trained tower strictly.

    These are the rotary tables, once for the tower and once for each block, and a head that nothing runs.
    """
    if not isinstance(vision, EvaClipVisionConfig):
        return tensors
    like = tensors["cls_token"]
    width, classes = vision.hidden_size, vision.projection_dim
    extras: LazyTensors = {
        "head.weight": lambda: torch.zeros(classes, width, dtype=like().dtype),
        "head.bias": lambda: torch.zeros(classes, dtype=like().dtype),
    }
    for owner in ("rope.", *(f"blocks.{number}.attn.rope." for number in range(vision.num_hidden_layers))):
        for which, name in enumerate(("freqs_cos", "freqs_sin")):
            extras[owner + name] = partial(_rotary, vision, which, like)
    return {**tensors, **extras}


def _rotary(vision: EvaClipVisionConfig, which: int, like: Any) -> Tensor:
    return rotary(vision, torch.device("cpu"), torch.float32)[which].to(like().dtype)


def _to_pickle(place: Path) -> None:
    """Turn the weights beside `place` into the pickle that Bunny's EVA-CLIP reads."""
    from safetensors.torch import load_file

    written = place.with_name("model.safetensors")
    torch.save({f"visual.{name}": tensor for name, tensor in load_file(written).items()}, place)
    written.unlink()


def _eva_fields(vision: EvaClipVisionConfig) -> dict[str, Any]:
    return {
        "embed_dim": vision.projection_dim,
        "vision_cfg": {
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "layers": vision.num_hidden_layers,
            "width": vision.hidden_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "mlp_ratio": (vision.intermediate_size + 0.5) / vision.hidden_size,  # rounds down to it again
            "pt_hw_seq_len": vision.pretrained_grid,
            **dict.fromkeys(("rope", "intp_freq", "naiveswiglu", "subln"), True),
        },
    }


def _processor(vision: PretrainedConfig, image: ImageSpec) -> dict[str, Any]:
    square = {"height": vision.image_size, "width": vision.image_size}
    siglip = vision.model_type == SIGLIP
    kind: dict[str, Any] = {"image_processor_type": "SiglipImageProcessor", "size": square}
    if not siglip:
        crop = {"size": {"shortest_edge": vision.image_size}, "crop_size": square, "do_center_crop": True}
        kind = {"image_processor_type": "CLIPImageProcessor", "do_convert_rgb": True, **crop}
    return {
        **kind,
        "do_resize": True,
        "resample": 3,  # bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(image.mean),
        "image_std": list(image.std),
    }


def write_json(file: Path, value: dict[str, Any]) -> None:
    """Write a configuration file; equal values give equal bytes."""
    file.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
