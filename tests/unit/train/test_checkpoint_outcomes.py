"""Whoever writes a checkpoint reports whether it was committed."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from warren.errors import CheckpointError, StorageError
from warren.storage import FileEntry, Location
from warren.train.checkpoint import CheckpointManifest, Checkpoints
from warren.train.checkpoint_writer import CheckpointWriter
from warren.train.ranks import Ranks


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Ranks]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield Ranks(0, 0, 1)
    dist.destroy_process_group()


def manifest(step: int, files: tuple[FileEntry, ...]) -> CheckpointManifest:
    return CheckpointManifest(step, 1, 0, "f", files)


def write(folder: Path) -> None:
    (folder / "state").write_text("weights")


def test_a_commit_is_reported_and_so_is_every_way_to_fail(ranks: Ranks, tmp_path: Path) -> None:
    outcomes: list[tuple[int, bool]] = []
    checkpoints = Checkpoints(Location.parse(str(tmp_path / "checkpoints")))

    def writer(at: Checkpoints = checkpoints) -> CheckpointWriter:
        return CheckpointWriter(
            at, ranks, "a", manifest, lambda: None, lambda step, is_committed: outcomes.append((step, is_committed))
        )

    first = writer()
    first.begin(4, write, 7, None)
    first.finish()
    assert outcomes == [(4, True)]
    first.begin(4, write, 7, None)
    with pytest.raises(CheckpointError, match="committed by someone else"):
        first.finish()
    with pytest.raises(CheckpointError, match="GB free"):
        writer().begin(8, write, 10**18, None)
    (tmp_path / "file").write_text("where a folder should be")
    blocked = writer(Checkpoints(Location.parse(str(tmp_path / "file"))))
    blocked.begin(12, write, 7, None)
    with pytest.raises((StorageError, CheckpointError)):
        blocked.finish()
    assert outcomes[1:] == [(4, False), (8, False), (12, False)]
