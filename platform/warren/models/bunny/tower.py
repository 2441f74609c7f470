"""The vision tower of a Bunny checkpoint: its configuration, its weights, and where they are read from.

Bunny ignores the tower inside a checkpoint unless it was trained (`unfreeze_vision_tower`) or is to be trained further
(`continuous_training`), and reads the folder or the hub id in `mm_vision_tower` instead. Images are prepared by that
folder's own processor in any case. A folder is recognised by its own files, never by its name.
"""

from pathlib import Path
from typing import Any

from warren.config.catalog import TOWERS
from warren.errors import ModelError
from warren.models.bunny.tower_files import OWN_FOLDER, OWN_TOWERS
from warren.models.tensors import LazyTensors
from warren.models.towers import (
    MODEL_TYPES,
    TowerFolder,
    known_config,
    normalisation,
    read_tower_folder,
    tower_config,
    tower_tensors,
)

_COPY = "model.vision_tower.vision_tower."  # of the tower, in a checkpoint


def read_tower(
    source: Path, config: dict[str, Any], checkpoint: LazyTensors, override: Path | None, adapted: bool = False
) -> TowerFolder:
    """Return the tower that Bunny would use.

    Args:
        source: The checkpoint's folder; relative tower names are searched for in it and above it.
        config: The checkpoint's config.json.
        checkpoint: Its tensors, by Bunny's names.
        override: A tower folder to use instead of the one that the configuration names.
        adapted: Whether adapters changed the checkpoint's copy, so that it must be used.

    Raises:
        ModelError: The tower cannot be found, or is of an unknown kind.
    """
    name = str(config.get("mm_vision_tower"))
    folder = override or _find(source, name)
    copy = {k.removeprefix(_COPY): read for k, read in checkpoint.items() if k.startswith(_COPY)}
    if folder is None:
        published = next((tower for tower in TOWERS.values() if tower.pretrained == name), None)
        if published is None or not copy:  # every merged checkpoint carries a copy of its tower
            raise ModelError(
                f"config.json names the vision tower {name!r}, which is nowhere here; give it as --vision-tower DIR"
            )
        return TowerFolder(
            known_config({**published.config, "model_type": MODEL_TYPES[published.family]}), tower_tensors(copy)
        )
    says_own = [key for key in ("unfreeze_vision_tower", "continuous_training") if config.get(key)]
    if says_own and not copy:
        raise ModelError(f"config.json says {says_own[0]}, but the checkpoint holds no vision tower")
    if not says_own and not adapted:
        return read_tower_folder(folder)
    vision = tower_config(folder)
    return TowerFolder(vision, tower_tensors(copy), normalisation(folder, vision))


def _find(source: Path, name: str) -> Path | None:
    """Look for the tower in and above the checkpoint; EVA-CLIP's `NAME.pt` may be a folder NAME."""
    source = source.resolve()
    names = [name, name.removesuffix(".pt")]
    roots = [Path(), source, *list(source.parents)[:3]]
    own = [source / place for place in OWN_TOWERS.values()]
    older = [source / OWN_FOLDER] if (source / OWN_FOLDER / "config.json").is_file() else []
    places = [*own, *older, *(root / name for name in names for root in roots)]
    return next((place for place in places if place.exists()), None)
