"""A run in storage: its folder, its record and its checkpoints."""

from dataclasses import dataclass
from typing import cast

from warren.config import check_name
from warren.errors import CheckpointError, NotFoundError
from warren.storage import Location
from warren.train.checkpoint import CheckpointManifest, Checkpoints
from warren.train.run_record import RunRecord

RECORD = "run.json"


@dataclass(frozen=True)
class Run:
    """A run's folder. The same name in the same storage is the same run, which resumes where it stopped."""

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

    def newest_checkpoint(self) -> CheckpointManifest:
        """Return the manifest of the newest complete checkpoint, for a job that needs one.

        Raises:
            CheckpointError: The run has none.
        """
        newest = self.checkpoints.latest()
        if newest is None:
            raise CheckpointError(
                f"run {self.name!r} at {self.folder} has no complete checkpoint: train it first, or name another run "
                "with --run"
            )
        return newest

    def record(self) -> RunRecord | None:
        """Return the record that the run wrote last, or None where there is no such run."""
        try:
            return cast(RunRecord, (self.folder / RECORD).read_json())
        except NotFoundError:
            return None

    def write(self, record: RunRecord) -> None:
        """Write the run's record."""
        (self.folder / RECORD).put_json(record)
