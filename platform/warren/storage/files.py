"""`Store` on a local or shared file system."""

import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from warren.errors import AccessDeniedError, ConflictError, NotFoundError, StorageError
from warren.storage.digests import digest_bytes, digest_file

_HIDDEN_PREFIX = ".warren-"  # temporary and lock files: never listed


class FileStore:
    """Keys are absolute paths. Writes appear by rename or link, so half a file is never seen under its name."""

    def read(self, key: str) -> tuple[bytes, str]:
        with _errors(key):
            data = Path(key).read_bytes()
        return data, digest_bytes(data)

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        with _errors(key), Path(key).open("rb") as file:
            file.seek(start)
            return file.read(stop - start)

    def create(self, key: str, data: bytes) -> None:
        with _errors(key), _staged(key) as staged:
            _write_durably(staged, data)
            try:
                os.link(staged, key)  # unlike rename, refuses an existing name
            except FileExistsError:
                raise ConflictError(f"{key} exists already and is never overwritten") from None

    def replace(self, key: str, data: bytes, tag: str) -> None:
        lock = Path(key).with_name(f"{_HIDDEN_PREFIX}lock-{Path(key).name}")
        with _errors(key), lock.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            if self.read(key)[1] != tag:
                raise ConflictError(f"{key} changed since it was read; read it again and decide anew")
            with _staged(key) as staged:
                _write_durably(staged, data)
                staged.replace(key)

    def upload(self, source: Path, key: str) -> None:
        with _errors(key), _staged(key) as staged:
            shutil.copyfile(source, staged)
            staged.replace(key)

    def download(self, key: str, target: Path) -> None:
        with _errors(key):
            shutil.copyfile(key, target)

    def copy(self, source: str, target: str) -> None:
        with _errors(source):
            Path(source).stat()
        self.upload(Path(source), target)  # no hard link: damage to one of the two must not reach the other

    def sha256(self, key: str) -> str:
        with _errors(key):
            return digest_file(Path(key))[1]

    def size(self, key: str) -> int:
        with _errors(key):
            return Path(key).stat().st_size

    def stamp(self, key: str) -> tuple[int, str]:
        with _errors(key):
            status = Path(key).stat()
        return status.st_size, str(status.st_mtime_ns)

    def list(self, prefix: str) -> list[str]:
        with _errors(prefix):
            files = (p for p in Path(prefix).rglob("*") if p.is_file() and not p.name.startswith(_HIDDEN_PREFIX))
            return sorted((str(path) for path in files), key=str.encode)

    def delete(self, key: str) -> None:
        with _errors(key):
            Path(key).unlink(missing_ok=True)


def apply_umask(folder: Path) -> None:
    """Give the files below a folder the mode that the umask gives new files: some libraries write mode 0600.

    The mode is taken from a new file, because reading the umask means setting it for all threads.
    """
    probe = folder / f"{_HIDDEN_PREFIX}{uuid.uuid4().hex}"
    probe.touch(exist_ok=False)
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode | path.stat().st_mode & 0o777)


@contextmanager
def _staged(key: str) -> Iterator[Path]:
    """Give a temporary name in the target's folder; it is removed whatever happens."""
    folder = Path(key).parent
    folder.mkdir(parents=True, exist_ok=True)
    staged = folder / f"{_HIDDEN_PREFIX}{uuid.uuid4().hex}"
    staged.touch(exist_ok=False)  # tempfile's names would be readable by this user alone, whatever the umask
    try:
        yield staged
    finally:
        staged.unlink(missing_ok=True)


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _errors(key: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"{key}: no such file") from None
    except IsADirectoryError:
        raise NotFoundError(f"{key} is a folder, not a file") from None
    except ValueError:  # NUL, or text that is no UTF-8
        raise NotFoundError(f"{key!a}: no file can have this name") from None
    except PermissionError:
        raise AccessDeniedError(f"{key}: this user may not read or write it") from None
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise NotFoundError(f"{key[:200]}: no such file ({error.strerror})") from None
        raise StorageError(f"{key}: {error.strerror or error}") from error
