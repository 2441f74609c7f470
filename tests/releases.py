"""Releases of tiny models, for the tests of what stands around them."""

from collections.abc import Sequence
from pathlib import Path

from warren.release import Lineage, ParentModel, Registry, publish
from warren.storage import Location, StoredFiles, upload_verified

NAME = "demo"


def stored_model(root: Location, tmp_path: Path, text: str) -> StoredFiles:
    """Store two files that hold a text."""
    folder, local = root / f"checkpoint-{text}/a1/model", tmp_path / text
    local.write_text(text)
    paths = ("config.json", "model.safetensors")
    return StoredFiles(folder, tuple(upload_verified(local, folder, path) for path in paths))


def publish_text(
    root: Location, tmp_path: Path, version: str, parents: Sequence[ParentModel] = (), name: str = NAME
) -> Location:
    """Publish a version that holds its own name."""
    lineage = Lineage(run=f"run-{version}", step=3, parents=tuple(parents))
    return publish(root, name, version, stored_model(root, tmp_path, version), lineage, {"test/exact_match": 0.8})


def registry_with(root: Location, tmp_path: Path, *versions: str) -> Registry:
    """Publish versions and return their registry."""
    for version in versions:
        publish_text(root, tmp_path, version)
    return Registry(root, NAME)
