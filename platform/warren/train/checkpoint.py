"""Checkpoints in storage. Files are uploaded under unique names and verified; the manifest, written last, completes it.

checkpoints/00000120/ATTEMPT/state/…      every rank's DeepSpeed files
checkpoints/00000120/ATTEMPT/ranks/…      every rank's random-number state, and the metrics so far
checkpoints/00000120/ATTEMPT/model/…      the servable model, in Hugging Face layout
checkpoints/00000120/ATTEMPT/adapter/…    with LoRA: the adapters alone, in PEFT's layout
checkpoints/00000120/manifest.json        last: from here on the checkpoint exists
"""

from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from warren.errors import CheckpointError, ConflictError, NotFoundError
from warren.storage import FileEntry, Location, StoredFiles, digest_bytes, upload_verified
from warren.train.run_record import RunRecord

MANIFEST = "manifest.json"
DAMAGED_MANIFEST = "manifest.damaged.json"
MODEL_FOLDER = "model"
ADAPTER_FOLDER = "adapter"
STATE_FOLDER = "state"  # DeepSpeed's alone: its converter reads every file there
RANKS_FOLDER = "ranks"
METRICS_FILE = "metrics.jsonl"


@dataclass(frozen=True)
class CheckpointManifest:
    """The manifest that completes a checkpoint.

    Attributes:
        step: Optimizer steps taken. Training goes on with the global batch of this number.
        world_size: Ranks that wrote it.
        zero_stage: How DeepSpeed partitioned the state.
        files: Every file, relative to the checkpoint's folder.
        run: The run's record.
    """

    step: int
    world_size: int
    zero_stage: int
    fingerprint: str
    files: tuple[FileEntry, ...]
    run: RunRecord = field(default_factory=RunRecord)

    def to_json(self) -> dict[str, Any]:
        """Return the value as JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "CheckpointManifest":
        """Rebuild what `to_json` returned."""
        files = tuple(FileEntry.from_json(entry) for entry in value["files"])
        return cls(**{**value, "files": files})

    def below(self, part: str) -> tuple[FileEntry, ...]:
        """Return the files of one part, such as `model`; their paths begin with the attempt that wrote them."""
        return tuple(entry for entry in self.files if entry.path.split("/")[1:2] == [part])

    def digest(self, part: str) -> str:
        """Return what identifies the files of one part, whichever attempt wrote them."""
        lines = sorted(f"{entry.path.partition('/')[2]} {entry.sha256}" for entry in self.below(part))
        return digest_bytes("\n".join(lines).encode())


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run."""

    folder: Location

    def at(self, step: int) -> Location:
        """Return the folder of the checkpoint at a step."""
        return self.folder / f"{step:08d}"

    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, ascending."""
        return self._steps_with(MANIFEST)

    def _steps_with(self, name: str) -> list[int]:
        return sorted({int(each.uri.split("/")[-2]) for each in self.folder.list() if each.name == name})

    def read(self, step: int) -> CheckpointManifest:
        """Read a complete checkpoint's manifest.

        Raises:
            CheckpointError: There is none at that step, or its manifest is damaged.
        """
        target = self.at(step) / MANIFEST
        try:
            return CheckpointManifest.from_json(target.read_json())
        except NotFoundError:
            complete = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointError(
                f"{self.folder}: no complete checkpoint at step {step}; complete: {complete}"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{target} is damaged ({error!r}): restore it, or use another checkpoint") from None

    def latest(self) -> CheckpointManifest | None:
        """Return the newest complete checkpoint's manifest, or None."""
        steps = self.steps()
        return self.read(steps[-1]) if steps else None

    def part(self, checkpoint: CheckpointManifest, part: str) -> StoredFiles:
        """Return one part of a checkpoint, such as `model`, with paths relative to that part's folder.

        Raises:
            CheckpointError: The checkpoint has no such part.
        """
        entries = checkpoint.below(part)
        folder = self.at(checkpoint.step)
        if not entries:
            raise CheckpointError(f"the checkpoint at {folder} has no {part!r}: use another checkpoint")
        attempt = entries[0].path.split("/")[0]  # all of a checkpoint's files are one attempt's
        files = tuple(replace(entry, path=entry.path.removeprefix(f"{attempt}/{part}/")) for entry in entries)
        return StoredFiles(folder / attempt / part, files)

    def upload(self, step: int, attempt: str, local: Path) -> list[FileEntry]:
        """Upload every file below `local` under names no other attempt uses, and verify them."""
        files = sorted(path for path in local.rglob("*") if path.is_file())
        folder = self.at(step)
        return [upload_verified(path, folder, f"{attempt}/{path.relative_to(local)}") for path in files]

    def commit(self, manifest: CheckpointManifest) -> None:
        """Write the manifest; from here on the checkpoint exists."""
        try:
            (self.at(manifest.step) / MANIFEST).create_json(manifest.to_json())
        except ConflictError:
            raise CheckpointError(
                f"{self.at(manifest.step)} was committed by someone else: two jobs train the same run; "
                "stop one of them or give it another --run"
            ) from None

    def set_aside(self, step: int) -> Location:
        """Rename the manifest of a damaged checkpoint, so that it no longer counts, and return its new location."""
        manifest, kept = self.at(step) / MANIFEST, self.at(step) / DAMAGED_MANIFEST
        kept.put_bytes(manifest.read_bytes())
        manifest.store.delete(manifest.key)
        return kept

    def prune(self, keep: int, needed: Collection[int] = ()) -> None:
        """Delete all but the newest `keep`; manifests first, so that a half-deleted checkpoint is not complete.

        Args:
            needed: Steps whose checkpoints are kept too.
        """
        kept = self.steps()[-keep:]
        for step in {*self.steps(), *self._steps_with(DAMAGED_MANIFEST)} - {*needed}:
            if not kept or step >= kept[0]:
                continue
            manifest = self.at(step) / MANIFEST
            manifest.store.delete(manifest.key)
            for each in self.at(step).list():
                each.store.delete(each.key)
