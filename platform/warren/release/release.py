"""A release: the model of one checkpoint, complete once `release.json` exists, and never changed.

releases/NAME/VERSION/publishing.json        first: which model is copied here, so that no other is copied over it
releases/NAME/VERSION/model.safetensors …    Hugging Face layout
releases/NAME/VERSION/golden/cases.json …    golden cases, which a replica checks before it serves
releases/NAME/VERSION/verdict.json           what the gate said
releases/NAME/VERSION/release.json           last
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warren.config import check_name
from warren.data.golden_cases import GOLDEN_FOLDER
from warren.errors import ConfigError, ConflictError, NotFoundError, ReleaseError
from warren.release.lineage import Lineage
from warren.release.records import read_record
from warren.release.removal_marks import check_not_removed
from warren.storage import FileEntry, Location, StoredFiles, digest_bytes
from warren.storage.file_cache import fetch_cached

MANIFEST = "release.json"
RESERVED = ("candidate", "stable", "aliases", "deployments", "pins", "removals", "rollouts")
"""What a version cannot be called: aliases, and the folders beside the versions."""

_CLAIM = "publishing.json"
_WEIGHTS = ".safetensors"

GoldenWriter = Callable[[StoredFiles, Location], tuple[FileEntry, ...]]
"""Makes the golden cases of a model and writes them into the folder of its release, as `GoldenCases.store` does."""


@dataclass(frozen=True)
class Release:
    """What a release is and where it came from.

    Attributes:
        created: Seconds since 1970.
        lineage: What it was made of.
        scores: The measured value of each `DATASET/METRIC`.
    """

    name: str
    version: str
    created: int
    lineage: Lineage
    scores: dict[str, float]
    files: tuple[FileEntry, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the value as JSON types."""
        files = [entry.to_json() for entry in self.files]
        return {**self.__dict__, "lineage": self.lineage.to_json(), "files": files}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Release":
        """Rebuild what `to_json` returned."""
        files = tuple(FileEntry.from_json(entry) for entry in value["files"])
        return cls(**{**value, "lineage": Lineage.from_json(value["lineage"]), "files": files})


def release_folder(root: Location, name: str, version: str) -> Location:
    """Return where a release's version lives.

    Raises:
        ConfigError: One of the two is not a name.
    """
    return root / "releases" / check_name(name, "release") / check_name(version, "version")


def read_release(folder: Location) -> Release:
    """Read a complete release.

    Raises:
        ReleaseError: There is none, or its `release.json` is damaged.
    """
    try:
        return read_record(folder / MANIFEST, Release.from_json)
    except NotFoundError:
        raise ReleaseError(f"no release at {folder}: {MANIFEST} does not exist there") from None


def fetch_release(uri: str, target: Path, weights: bool = True) -> Release:
    """Put a release's files below the local folder `target`, and check every byte.

    A release with its weights is downloaded once a machine: this machine's cache keeps it for the next call.

    Args:
        uri: An immutable version, as `resolve_release` returns it.
        weights: Whether to fetch the weights too, which are nearly all of its bytes.

    Raises:
        ReleaseError: There is none.
        CorruptDataError: A file differs from what was published.
    """
    folder = Location.parse(uri)
    release = read_release(folder)
    if weights:
        fetch_cached(StoredFiles(folder, release.files), target)
    else:
        StoredFiles(folder, tuple(e for e in release.files if not e.path.endswith(_WEIGHTS))).fetch(target)
    return release


def publish(
    root: Location,
    name: str,
    version: str,
    model: StoredFiles,
    lineage: Lineage,
    scores: dict[str, float],
    golden: GoldenWriter | None = None,
) -> Location:
    """Copy a model into a release and complete it; publishing the same again changes nothing.

    The store makes the copies, so the model does not go through this machine's disk.

    Args:
        model: The model files of a checkpoint.
        golden: Writes the golden cases; called once, for a release that does not exist yet. Without it the release has
            none, and is served unchecked.

    Raises:
        CorruptDataError: A file of the checkpoint is damaged.
        ReleaseError: That version exists with other files, or is being removed.
    """
    folder = release_folder(root, name, version)
    if version in RESERVED:
        raise ConfigError(f"version {version!r} is the name of a folder or an alias of every release: choose another")
    check_not_removed(root, name, version)
    try:
        present = read_release(folder)
    except ReleaseError:
        present = None
    if present is None:
        _claim(folder, model)
        made = golden(model, folder) if golden else ()
        present = Release(name, version, int(time.time()), lineage, scores, model.copy(folder) + made)
        try:
            (folder / MANIFEST).create_json(present.to_json())
        except ConflictError:
            present = read_release(folder)
    published = [e.sha256 for e in present.files if not e.path.startswith(f"{GOLDEN_FOLDER}/")]
    if sorted(published) != sorted(e.sha256 for e in model.files):
        raise _others(folder)
    return folder


def _claim(folder: Location, model: StoredFiles) -> None:
    """Say which model is about to be copied into a version; publishers of the same model share the claim.

    Raises:
        ReleaseError: Somebody else began to publish another model as this version.
    """
    lines = sorted(f"{entry.path} {entry.sha256}" for entry in model.files)
    claim = {"model": digest_bytes("\n".join(lines).encode())}
    try:
        (folder / _CLAIM).create_json(claim)
    except ConflictError:
        if (folder / _CLAIM).read_json() != claim:
            raise _others(folder) from None


def _others(folder: Location) -> ReleaseError:
    return ReleaseError(
        f"release {folder.name} exists at {folder} with other files; releases never change: "
        "train under another --run, or give another release.name"
    )
