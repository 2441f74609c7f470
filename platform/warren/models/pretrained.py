"""Pretrained parts: finding their files, and loading their weights into a model that was built for them."""

import copy
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, CLIPVisionModel, Dinov2Model, SiglipVisionModel

from warren.errors import ConfigError, ModelError
from warren.models.eva_clip import EvaClipVisionModel
from warren.models.local_folders import download_folder
from warren.models.quiet import quiet_transformers
from warren.models.towers import read_tower_folder
from warren.models.vocabulary import with_rows
from warren.storage import Location

_SMALL_FILES = ["*.json", "*.model", "*.txt"]  # configuration and tokenizer
_WEIGHTS = ["*.safetensors"]
_DONE = ".complete"
_TOWER_CLASSES = {
    "siglip_vision_model": SiglipVisionModel,
    "clip_vision_model": CLIPVisionModel,
    "dinov2": Dinov2Model,
}


def folder_of(pretrained: str, weights: bool = True) -> Path:
    """Return the local folder (or file) of a pretrained part, downloading it where it is not local.

    Args:
        pretrained: A local path, `s3://bucket/folder`, a hub id `owner/name`, or a file there `owner/name/file`.
            `$WARREN_STORAGE` stands for the storage's own location.
        weights: False: configuration and tokenizer are enough.

    Raises:
        ConfigError: It cannot be found; the message says what was tried.
    """
    pretrained = os.path.expandvars(pretrained)
    if Path(pretrained).exists():
        return Path(pretrained)
    if pretrained.startswith("s3://"):
        return _from_s3(Location.parse(pretrained))
    owner, _, rest = pretrained.partition("/")
    name, _, file = rest.partition("/")
    try:
        if file:
            return Path(hf_hub_download(f"{owner}/{name}", file))
        patterns = [*_SMALL_FILES, *_WEIGHTS] if weights else _SMALL_FILES
        folder = Path(snapshot_download(pretrained, allow_patterns=patterns))
        if weights and not any(folder.glob("*.safetensors")):  # published before safetensors
            folder = Path(snapshot_download(pretrained, allow_patterns=[*_SMALL_FILES, "pytorch_model*.bin"]))
        return folder
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"pretrained: {pretrained!r} is no folder here, and the hub does not give it ({reason}): "
            "download it once and name its folder or its s3:// location instead"
        ) from None


def read_config(folder: Path) -> dict[str, Any]:
    """Read a folder's config.json.

    Raises:
        ModelError: There is none, or it is no JSON object.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder} has no readable config.json: {error}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{folder / 'config.json'} is no JSON object")
    if config.get("quantization_config"):
        raise ModelError(f"{folder} is quantised; import the checkpoint it was made from")
    return config


def load_tower(module: Any, place: Path) -> None:
    """Fill a vision tower from its folder, a whole CLIP's or SigLIP's, or EVA-CLIP's weights file.

    Raises:
        ModelError: The weights are incomplete, damaged, or not of this shape.
    """
    if isinstance(module, EvaClipVisionModel):
        _copy(module, {name: read() for name, read in read_tower_folder(place).tensors.items()}, "vision tower")
    else:
        loaded = _load(_TOWER_CLASSES[module.config.model_type], place, module.config, "vision tower")
        _copy(module, loaded.state_dict(), "vision tower")


def load_language_model(module: Any, head: nn.Linear, folder: Path, num_rows: int, tied: bool) -> None:
    """Fill a decoder and its head from the folder of a causal language model.

    A shared head becomes one of its own; a bias of the head is dropped, as in Bunny (Phi's). Rows for tokens that the
    checkpoint does not have are the mean of the others, so the head never prefers a new token to all old ones.

    Args:
        module: The decoder without its head; its vocabulary may be larger than the checkpoint's.
        head: Its output embeddings.
        folder: As transformers' `save_pretrained` writes it.
        num_rows: Embeddings in the checkpoint.
        tied: Its head is its embeddings.

    Raises:
        ModelError: The weights are incomplete, damaged, or not of this shape.
    """
    config = copy.deepcopy(module.config)
    config.vocab_size, config.tie_word_embeddings = num_rows, tied
    loaded = _load(AutoModelForCausalLM, folder, config, "language model")
    embeddings = loaded.get_input_embeddings().weight
    tensors = {
        name: with_rows(tensor, module.config.vocab_size) if tensor.data_ptr() == embeddings.data_ptr() else tensor
        for name, tensor in loaded.base_model.state_dict().items()
    }
    _copy(module, tensors, "language model")
    _copy(head, {"weight": with_rows(loaded.get_output_embeddings().weight, len(head.weight))}, "language model's head")
    scale = getattr(module.config, "logits_scaling", 1.0)
    if scale != 1.0:  # LLaVA's head divides no logits; vLLM's would: so the head carries it
        head.weight.data /= scale
        module.config.logits_scaling = 1.0


def _load(kind: Any, folder: Path, config: Any, what: str) -> Any:
    try:
        with quiet_transformers():
            model, report = kind.from_pretrained(
                folder, config=config, dtype="auto", output_loading_info=True, ignore_mismatched_sizes=True
            )
    except (OSError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise ModelError(f"the {what} in {folder} does not load: {' '.join(str(error).split())[:400]}") from None
    wrong = [f"{name} is missing" for name in sorted(report["missing_keys"])]
    wrong += [f"{n} is {list(disk)}, not {list(own)}" for n, disk, own in sorted(report["mismatched_keys"])]
    if wrong:
        raise ModelError(f"the weights of the {what} in {folder} do not fit its configuration: {', '.join(wrong[:4])}")
    return model


def _copy(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Copy tensors into a module; every one of its own must be there and have its shape."""
    with torch.no_grad():
        for name, own in module.state_dict().items():
            if name not in tensors or tensors[name].shape != own.shape:
                shape = list(tensors[name].shape) if name in tensors else "missing"
                raise ModelError(f"{what}: {name} is {shape} on disk, its configuration says {list(own.shape)}")
            own.copy_(tensors[name])


def _from_s3(location: Location) -> Path:
    """Download a folder once a machine, for all of its processes."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "warren" / "models"
    folder = cache / hashlib.sha256(location.uri.encode()).hexdigest()[:16]
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / _DONE).exists():
            download_folder(location, folder)
            (folder / _DONE).touch()
    return folder
