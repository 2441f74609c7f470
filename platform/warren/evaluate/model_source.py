"""The stored model that a benchmark is asked of: a checkpoint, a model folder or a release."""

import hashlib
from dataclasses import dataclass
from importlib.metadata import version

from warren import __version__
from warren.data.model_inputs import INPUTS_FILE
from warren.errors import CheckpointError, ModelError, NotFoundError
from warren.evaluate.benchmark_run import AskedModel
from warren.release import read_release, resolve_release
from warren.storage import FileEntry, Location, StoredFiles
from warren.train.checkpoint import MANIFEST, MODEL_FOLDER, CheckpointManifest, Checkpoints
from warren.train.run import Run


@dataclass(frozen=True)
class ModelSource:
    """A model's files, and what reports call it."""

    model: AskedModel
    files: StoredFiles

    @classmethod
    def of_run(cls, run: Run, step: int | None = None) -> "ModelSource":
        """Take a run's checkpoint.

        Args:
            step: Of the checkpoint; None for the newest.

        Raises:
            CheckpointError: The run has none, or none at that step.
        """
        manifest = run.newest_checkpoint() if step is None else run.checkpoints.read(step)
        return cls._of_checkpoint(run.name, run.checkpoints, manifest)

    @classmethod
    def of_checkpoint(cls, folder: Location) -> "ModelSource":
        """Take a checkpoint by its folder, or a model folder that Warren wrote.

        Raises:
            CheckpointError: The checkpoint is not complete.
            ModelError: It is neither.
        """
        # A model folder, which has this file at its top; in a checkpoint it is in `model/`.
        if _exists(folder / INPUTS_FILE):
            return cls._of("/".join(folder.uri.rsplit("/", 2)[-2:]), StoredFiles(folder, _entries(folder)))
        parts = folder.uri.rsplit("/", 3)
        if not folder.name.isdigit():
            raise ModelError(
                f"{folder} has no {INPUTS_FILE} and is no checkpoint: give …/runs/RUN/checkpoints/STEP, or a folder "
                "that jobs/convert.py import or merge wrote"
            )
        checkpoints = Checkpoints(Location(folder.uri.rsplit("/", 1)[0]))
        if checkpoints.at(int(folder.name)) != folder or not _exists(folder / MANIFEST):
            complete = ", ".join(f"{step:08d}" for step in checkpoints.steps()) or "none"
            raise CheckpointError(f"no complete checkpoint at {folder}; complete in its run: {complete}")
        return cls._of_checkpoint(parts[-3], checkpoints, checkpoints.read(int(folder.name)))

    @classmethod
    def of_release(cls, release: str, root: Location) -> "ModelSource":
        """Take a release by its folder's URI, or by NAME/VERSION or NAME/ALIAS below a storage root.

        Raises:
            ReleaseError: There is none.
        """
        uri = release if "://" in release or release.startswith("/") else f"{root.uri}/releases/{release}"
        folder = Location.parse(resolve_release(uri))
        manifest = read_release(folder)
        return cls._of(f"{manifest.name} {manifest.version}", StoredFiles(folder, manifest.files))

    @classmethod
    def _of_checkpoint(cls, run: str, checkpoints: Checkpoints, manifest: CheckpointManifest) -> "ModelSource":
        return cls._of(f"{run} at step {manifest.step}", checkpoints.part(manifest, MODEL_FOLDER))

    @classmethod
    def _of(cls, name: str, files: StoredFiles) -> "ModelSource":
        versions = {"warren": __version__} | {each: version(each) for each in ("torch", "transformers", "tokenizers")}
        return cls(AskedModel(name, files.digest, versions), files)


def _exists(file: Location) -> bool:
    try:
        return file.store.size(file.key) >= 0
    except NotFoundError:
        return False


def _entries(folder: Location) -> tuple[FileEntry, ...]:
    """Digest the files of a folder that no manifest lists."""
    entries = []
    for file in folder.list():
        with file.open() as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
        entries.append(FileEntry(file.uri.removeprefix(f"{folder.uri}/"), file.store.size(file.key), digest))
    return tuple(entries)
