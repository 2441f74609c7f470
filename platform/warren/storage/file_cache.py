"""A machine's copies of stored files, shared by its processes, so that a model is downloaded once a machine.

FOLDER/lock                 held while entries are chosen, added or removed; never while files are downloaded
FOLDER/DIGEST.used          shared by whoever uses the entry; exclusive for its removal
FOLDER/DIGEST.filled        exclusive while the entry is filled
FOLDER/DIGEST/bytes         the entry's size, written first: it is the room that the entry takes
FOLDER/DIGEST/partial/…     files that are being downloaded
FOLDER/DIGEST/files/…       all of them, renamed from `partial`

Every lock is the kernel's, which releases it when a process is killed. An entry that a killed process was filling or
removing is then held by nobody: the next process completes it, or removes it when it needs the room.
"""

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from warren.config.environment import CACHE_VARIABLE, cache_bytes, cache_folder
from warren.storage.digests import digest_file
from warren.storage.scratch import scratch_folder
from warren.storage.transfer import StoredFiles, path_below

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class FileCache:
    """Local copies of stored files, at most `max_bytes` of them; those used least recently are removed first.

    Attributes:
        folder: On a local disk, and of this user alone.
    """

    folder: Path
    max_bytes: int

    @contextmanager
    def held(self, files: StoredFiles) -> Iterator[Path]:
        """Give a local folder with these files, every byte checked; nobody removes it while the context is open.

        The same files are one entry, wherever they are stored. Files that the cache has no room for are downloaded into
        a folder of their own, which is removed afterwards.

        Raises:
            CorruptDataError: A file in storage differs from its entry.
        """
        entry = self.folder / files.digest[:32]
        with ExitStack() as stack:
            if self._reserve(entry, files.num_bytes, stack):
                yield _filled(entry, files)
            else:
                yield files.fetch(stack.enter_context(scratch_folder("fetch")))

    def _reserve(self, entry: Path, num_bytes: int, stack: ExitStack) -> bool:
        """Make room for an entry and share its lock until the stack is closed; return False where there is no room."""
        if num_bytes > self.max_bytes:
            return False
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.folder.stat().st_uid != os.getuid():
                raise PermissionError(f"{self.folder} belongs to another user")
            with _locked(self.folder / "lock", fcntl.LOCK_EX):
                if not self._make_room(entry, num_bytes):
                    return False
                entry.mkdir(exist_ok=True)
                (entry / "bytes").write_text(str(num_bytes))  # also marks when it was used last
                stack.enter_context(_locked(_used(entry), fcntl.LOCK_SH))  # removers hold it under the lock above only
        except OSError as error:
            _LOG.warning(
                "the cache %s cannot be used (%s): point %s at another folder", self.folder, error, CACHE_VARIABLE
            )
            return False
        return True

    def _make_room(self, entry: Path, num_bytes: int) -> bool:
        """Remove other entries until this one fits into the cache and onto the disk; return whether it does."""
        others = [each for each in self.folder.iterdir() if each.is_dir() and each != entry]
        sizes = {each: size for each in others if (size := _size(each)) or not _remove(each)}
        here = num_bytes if (entry / "files").is_dir() else 0
        for oldest in sorted(sizes, key=_last_used):
            if self._fits(sizes, num_bytes, here):
                break
            if _remove(oldest):
                del sizes[oldest]
        return self._fits(sizes, num_bytes, here)

    def _fits(self, others: dict[Path, int], num_bytes: int, here: int) -> bool:
        free = shutil.disk_usage(self.folder).free
        return sum(others.values()) + num_bytes <= self.max_bytes and num_bytes - here <= free


@contextmanager
def local_copy(files: StoredFiles) -> Iterator[Path]:
    """Give a local folder with these files from this machine's cache; do not write to it.

    `WARREN_CACHE` and `WARREN_CACHE_BYTES` say where the cache is and how large it may grow.
    """
    folder = cache_folder() or f"{tempfile.gettempdir()}/warren-cache-{os.getuid()}"
    with FileCache(Path(folder), cache_bytes()).held(files) as local:
        yield local


def fetch_cached(files: StoredFiles, target: Path) -> Path:
    """Put files below the local folder `target`, from this machine's cache where it has them, and return `target`.

    They are hard links where the file system allows, so they take no room of their own and outlive the cache's entry.

    Raises:
        CorruptDataError: A file in storage differs from its entry.
        UnsafePathError: A file would be written outside `target`.
    """
    with local_copy(files) as local:
        for entry in files.files:
            placed = path_below(target, entry.path)
            try:
                placed.hardlink_to(local / entry.path)
            except OSError:  # another file system, or one without links
                shutil.copyfile(local / entry.path, placed)
    return target


def _filled(entry: Path, files: StoredFiles) -> Path:
    """Return the folder of an entry's files; download them unless they are there and every byte is right."""
    if not _is_whole(entry / "files", files):  # without the lock: processes check the same files side by side
        with _locked(entry.with_name(f"{entry.name}.filled"), fcntl.LOCK_EX):
            if not _is_whole(entry / "files", files):
                for leftover in ("files", "partial"):
                    shutil.rmtree(entry / leftover, ignore_errors=True)
                (entry / "partial").mkdir()
                files.fetch(entry / "partial")
                (entry / "partial").rename(entry / "files")
    return entry / "files"


def _is_whole(folder: Path, files: StoredFiles) -> bool:
    try:
        return all(digest_file(folder / entry.path) == (entry.bytes, entry.sha256) for entry in files.files)
    except OSError:
        return False


def _size(entry: Path) -> int:
    """Return the room that an entry takes; 0 if a killed process was removing it."""
    with suppress(OSError, ValueError):
        return int((entry / "bytes").read_text())
    return 0


def _last_used(entry: Path) -> int:
    return (entry / "bytes").stat().st_mtime_ns


def _remove(entry: Path) -> bool:
    """Remove an entry, and return whether nobody was using it; the cache's lock must be held."""
    with ExitStack() as stack:
        try:
            stack.enter_context(_locked(_used(entry), fcntl.LOCK_EX | fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        shutil.rmtree(entry)
        return True


def _used(entry: Path) -> Path:
    return entry.with_name(f"{entry.name}.used")


@contextmanager
def _locked(path: Path, kind: int) -> Iterator[IO[str]]:
    with path.open("a") as file:
        fcntl.flock(file, kind)
        yield file
