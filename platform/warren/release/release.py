"""A release: the servable files of one checkpoint, complete once `release.json` exists, and never changed.

releases/NAME/VERSION/model.safetensors …    Hugging Face layout
releases/NAME/VERSION/release.json           last
"""

import time
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from warren.config import check_name
from warren.errors import ConflictError, NotFoundError, ReleaseError
from warren.storage import FileEntry, Location, download_tree, upload_verified
from warren.storage.scratch import scratch_folder

MANIFEST = "release.json"
_WEIGHTS = ".safetensors"


@dataclass(frozen=True)
class Release:
    """What a release is and where it came from.

    Attributes:
        created: Seconds since 1970.
        lineage: Run, checkpoint step, dataset, configuration, packages, git revision.
        scores: What it was measured at, by benchmark.
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
    """Download a release into `target` and check every byte.

    Args:
        uri: An immutable version, as `resolve_release` returns it.
        target: A folder.
        weights: Fetch them too; they are nearly all of its bytes.

    Raises:
        ReleaseError: There is none.
        CorruptDataError: A file differs from what was published.
    """
    folder = Location.parse(uri)
    release = read_release(folder)
    files = tuple(entry for entry in release.files if weights or not entry.path.endswith(_WEIGHTS))
    download_tree(folder, files, target)
    return release


def publish(
    root: Location,
    name: str,
    version: str,
    source: Location,
    files: tuple[FileEntry, ...],
    lineage: dict[str, Any],
    scores: dict[str, float],
) -> Location:
    """Copy a checkpoint's servable files into a release and complete it. Publishing the same again changes nothing.

    Args:
        source: The checkpoint's folder.
        files: Its model files, relative to `source`.

    Raises:
        ReleaseError: That version exists with other files.
    """
    folder = release_folder(root, name, version)
    try:
        present = read_release(folder)
    except ReleaseError:
        present = None
    if present is None:
        with scratch_folder("release") as local:
            download_tree(source, files, local)
            copied = tuple(
                upload_verified(local / entry.path, folder, PurePosixPath(entry.path).name) for entry in files
            )
        present = Release(name, version, int(time.time()), lineage, scores, copied)
        try:
            (folder / MANIFEST).create_json(present.to_json())
        except ConflictError:
            present = read_release(folder)
    if sorted(e.sha256 for e in present.files) != sorted(e.sha256 for e in files):
        raise ReleaseError(
            f"release {name} {version} exists at {folder} with other files; releases never change: "
            "train under another --run, or give another release.name"
        )
    return folder
