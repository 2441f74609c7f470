"""Uploads, downloads, copies and reads whose bytes are checked."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from warren.errors import CorruptDataError, StorageError, UnsafePathError
from warren.storage.digests import FileEntry, check_relative, digest_bytes, digest_file
from warren.storage.location import Location
from warren.storage.scratch import scratch_folder

_PARALLEL_FILES = 4


def upload_verified(source: Path, folder: Location, path: str) -> FileEntry:
    """Upload a file to `folder/path` and check that storage holds all of it.

    Raises:
        StorageError: The object's size differs from the file's.
    """
    size, sha256 = digest_file(source)
    target = folder / path
    target.upload(source)
    stored = target.store.size(target.key)
    if stored != size:
        raise StorageError(
            f"{target} holds {stored} of {size} bytes: the upload did not arrive whole, run the job again"
        )
    return FileEntry(path=path, bytes=size, sha256=sha256)


@dataclass(frozen=True)
class StoredFiles:
    """Files of a manifest, and the folder that their paths are relative to."""

    folder: Location
    files: tuple[FileEntry, ...]

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(entry.bytes for entry in self.files)

    @property
    def digest(self) -> str:
        """Identifies paths and bytes: equal wherever the files are stored."""
        lines = sorted(f"{entry.path} {entry.sha256}" for entry in self.files)
        return digest_bytes("\n".join(lines).encode())

    def fetch(self, target: Path) -> Path:
        """Download every file below the local folder `target`, check every byte, and return `target`.

        Raises:
            CorruptDataError: A file differs from its entry.
            UnsafePathError: A file would be written outside `target`.
        """
        download_tree(self.folder, self.files, target)
        return target

    def copy(self, target: Location) -> tuple[FileEntry, ...]:
        """Copy every file below the folder `target`, and check every byte of the copies; return their entries.

        The store makes the copies itself. Only between two kinds of storage do they go through this machine's disk.

        Raises:
            CorruptDataError: A copy differs from its entry.
        """
        if self.folder.is_s3 != target.is_s3:
            with scratch_folder("copy") as scratch:
                self.fetch(scratch)
                return tuple(upload_verified(scratch / entry.path, target, entry.path) for entry in self.files)

        def copy(entry: FileEntry) -> FileEntry:
            source, copied = self.folder / entry.path, target / entry.path
            source.store.copy(source.key, copied.key)
            size = copied.store.size(copied.key)
            if size != entry.bytes or copied.store.sha256(copied.key) != entry.sha256:
                raise CorruptDataError(_mismatch(self.folder, entry, size))
            return entry

        with ThreadPoolExecutor(_PARALLEL_FILES) as pool:
            return tuple(pool.map(copy, self.files))


def read_verified(folder: Location, entry: FileEntry) -> bytes:
    """Return the bytes of a file of a dataset.

    Raises:
        CorruptDataError: They are not the bytes the manifest lists.
    """
    data = (folder / entry.path).read_bytes()
    if digest_bytes(data) != entry.sha256:
        raise CorruptDataError(f"{_mismatch(folder, entry, len(data))}, or make the dataset anew")
    return data


def download_tree(folder: Location, entries: Sequence[FileEntry], target: Path) -> None:
    """Copy a manifest's files below `target`, in parallel, and check every byte.

    Raises:
        CorruptDataError: A file differs from its entry.
        UnsafePathError: A file would be written outside `target`.
    """

    def fetch(entry: FileEntry) -> None:
        local = path_below(target, entry.path)
        source = folder / entry.path
        source.store.download(source.key, local)
        size, sha256 = digest_file(local)
        if sha256 != entry.sha256:
            raise CorruptDataError(_mismatch(folder, entry, size))

    with ThreadPoolExecutor(_PARALLEL_FILES) as pool:
        list(pool.map(fetch, entries))


def path_below(folder: Path, path: str) -> Path:
    """Return where a file of a manifest or a listing goes below a local folder, and make its folder.

    Raises:
        UnsafePathError: It would be outside, by its path or through a symbolic link.
    """
    local = folder / check_relative(path)
    root = folder.resolve()
    if local.resolve().is_relative_to(root):
        local.parent.mkdir(parents=True, exist_ok=True)
        return local
    raise UnsafePathError(f"{local} is refused: a symbolic link leads out of {root}; remove the link")


def _mismatch(folder: Location, entry: FileEntry, size: int) -> str:
    return (
        f"{folder / entry.path}: {size} bytes whose SHA-256 is not the manifest's "
        f"({entry.bytes} bytes, {entry.sha256[:12]}…): the object is damaged, restore it from a copy"
    )
