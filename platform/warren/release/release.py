"""A release: the model of one checkpoint, complete once `release.json` exists, and never changed.

releases/NAME/VERSION/model.safetensors …    Hugging Face layout
releases/NAME/VERSION/golden/cases.json …    golden cases, which a replica checks before it serves
releases/NAME/VERSION/release.json           last
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warren.config import check_name
from warren.data.golden_cases import GOLDEN_FOLDER
from warren.errors import ConflictError, NotFoundError, ReleaseError
from warren.storage import FileEntry, Location, StoredFiles
from warren.storage.file_cache import fetch_cached

MANIFEST = "release.json"
_WEIGHTS = ".safetensors"

GoldenWriter = Callable[[StoredFiles, Location], tuple[FileEntry, ...]]
"""Makes the golden cases of a model and writes them into the folder of its release, as `GoldenCases.store` does."""


@dataclass(frozen=True)
class Release:
    """What a release is and where it came from.

    Attributes:
        created: Seconds since 1970.
        lineage: The run's record with the run's name, the checkpoint's step and the evaluation.
        scores: The measured value of each `DATASET/METRIC`.
    """

    name: str
    version: str
    created: int
    lineage: dict[str, Any]
    scores: dict[str, float]
    files: tuple[FileEntry, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the value as JSON types."""
        return {**self.__dict__, "files": [entry.to_json() for entry in self.files]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Release":
        """Rebuild what `to_json` returned."""
        return cls(**{**value, "files": tuple(FileEntry.from_json(entry) for entry in value["files"])})


def release_folder(root: Location, name: str, version: str) -> Location:
    """Return where a release's version lives.

    Raises:
        ConfigError: One of the two is not a name.
    """
    return root / "releases" / check_name(name, "release") / check_name(version, "version")


def read_release(folder: Location) -> Release:
    """Read a complete release.

    Raises:
        ReleaseError: There is none.
    """
    try:
        return Release.from_json((folder / MANIFEST).read_json())
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
    lineage: dict[str, Any],
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
        ReleaseError: That version exists with other files.
    """
    folder = release_folder(root, name, version)
    try:
        present = read_release(folder)
    except ReleaseError:
        present = None
    if present is None:
        cases = golden(model, folder) if golden else ()
        present = Release(name, version, int(time.time()), lineage, scores, model.copy(folder) + cases)
        try:
            (folder / MANIFEST).create_json(present.to_json())
        except ConflictError:
            present = read_release(folder)
    published = [e.sha256 for e in present.files if not e.path.startswith(f"{GOLDEN_FOLDER}/")]
    if sorted(published) != sorted(e.sha256 for e in model.files):
        raise ReleaseError(
            f"release {name} {version} exists at {folder} with other files; releases never change: "
            "train under another --run, or give another release.name"
        )
    return folder
