"""`Store` on a local or shared file system."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from warren.errors import AccessDeniedError, ConflictError, NotFoundError, StorageError
from warren.storage.digests import digest_bytes

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

    def size(self, key: str) -> int:
        with _errors(key):
            return Path(key).stat().st_size

    def list(self, prefix: str) -> list[str]:
        with _errors(prefix):
            found = (p for p in Path(prefix).rglob("*") if p.is_file() and not p.name.startswith(_HIDDEN_PREFIX))
            return sorted((str(path) for path in found), key=str.encode)

    def delete(self, key: str) -> None:
        with _errors(key):
            Path(key).unlink(missing_ok=True)


@contextmanager
def _staged(key: str) -> Iterator[Path]:
    """Give a temporary name in the target's folder; it is removed whatever happens."""
    folder = Path(key).parent
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=_HIDDEN_PREFIX, dir=folder)
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _errors(key: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise NotFoundError(f"{key}: no such file") from None
    except PermissionError:
        raise AccessDeniedError(f"{key}: this user may not read or write it") from None
    except OSError as error:
        raise StorageError(f"{key}: {error.strerror or error}") from error
