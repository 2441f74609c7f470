"""What a run was, written down: configuration, packages, revision, dataset, and what changed (invariant 7)."""

import importlib.metadata
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from warren import __version__
from warren.config import Recipe, Resources, check_name, fingerprint
from warren.data.stream import DatasetSource
from warren.errors import NotFoundError
from warren.storage import Location
from warren.train.checkpoint import Checkpoints

RECORD = "run.json"
_PACKAGES = ("ray", "torch", "transformers", "peft", "deepspeed", "tokenizers", "pyarrow", "numpy", "pillow")
_REVISION_VARIABLE = "WARREN_GIT_REVISION"


@dataclass(frozen=True)
class Run:
    """A run's folder. The same storage and the same name mean the same run: it goes on where it stopped."""

    folder: Location

    @classmethod
    def of(cls, root: Location, name: str) -> "Run":
        """Return the run of a name below a storage root.

        Raises:
            ConfigError: It is not a name.
        """
        return cls(root / "runs" / check_name(name, "run"))

    @property
    def name(self) -> str:
        """The name that finds the run again."""
        return self.folder.name

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints of the run."""
        return Checkpoints(self.folder / "checkpoints")

    def record(self) -> dict[str, Any] | None:
        """Return what the run wrote down last, or None where there is no such run."""
        try:
            return (self.folder / RECORD).read_json()  # type: ignore[no-any-return]
        except NotFoundError:
            return None

    def write(self, record: dict[str, Any]) -> None:
        """Write the run's record."""
        (self.folder / RECORD).put_json(record)


def describe(
    recipe: Recipe,
    stage: Literal["pretrain", "finetune"],
    resources: Resources,
    sources: Sequence[DatasetSource],
    origin: dict[str, str] | None = None,
    origin_step: int | None = None,
) -> dict[str, Any]:
    """Collect what a later reader needs to know what was trained, from what, on what, with what."""
    identity = {
        "model": recipe.require("model").model_dump(mode="json"),
        stage: recipe.require(stage).model_dump(mode="json"),
    }
    return {
        "stage": stage,
        "recipe": {"name": recipe.name, **identity},
        "fingerprint": fingerprint(recipe),
        "origin": origin,
        "origin_step": origin_step,
        "resources": resources.model_dump(mode="json"),
        "datasets": {f"{s.manifest.name}@{s.manifest.version}": _dataset(s) for s in sources},
        "packages": {"warren": __version__, **_versions()},
        "git_revision": git_revision(),
        "created": int(time.time()),
    }


def _dataset(source: DatasetSource) -> dict[str, Any]:
    manifest = source.manifest
    return {
        "digest": manifest.digest,
        "rows": manifest.rows,
        "samples_per_epoch": source.samples_per_epoch,
    }


def git_revision() -> str:
    """Return the revision of the source tree, `unknown` in an image that was built without saying it."""
    if _REVISION_VARIABLE in os.environ:
        return os.environ[_REVISION_VARIABLE]
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        folder = Path(__file__).parent
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "absent"
    return found
