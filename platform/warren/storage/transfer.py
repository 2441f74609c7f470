"""Copies whose bytes are checked: up, down, and in one read."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from warren.errors import CorruptDataError, StorageError, UnsafePathError
from warren.storage.digests import FileEntry, check_relative, digest_bytes, digest_file
from warren.storage.location import Location

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
        raise StorageError(f"{target}: {stored} bytes are stored of {size}; the upload did not arrive whole")
    return FileEntry(path=path, bytes=size, sha256=sha256)


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
