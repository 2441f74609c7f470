"""Model folders on S3 for code that works on local folders: downloaded before, uploaded after."""

from collections.abc import Callable, Sequence
from pathlib import Path

from warren.errors import ConflictError, NotFoundError
from warren.storage import Location, path_below, upload_verified
from warren.storage.scratch import scratch_folder


def with_local_folders(work: Callable[..., None], sources: Sequence[str | None], target: str) -> None:
    """Call `work(*source folders, target folder)` with local folders; what is on S3 is copied around the call.

    config.json is uploaded last, so that a half-uploaded folder is not mistaken for a model.

    Raises:
        NotFoundError: A source on S3 holds nothing.
        ConflictError: The target on S3 holds something already.
    """
    with scratch_folder("convert") as scratch:
        local = [None if uri is None else _down(uri, scratch / str(n)) for n, uri in enumerate(sources)]
        location = Location.parse(target)
        if not location.is_s3:
            work(*local, Path(location.uri))
            return
        if location.list():
            raise ConflictError(f"{location} holds something already; nothing is overwritten, name a new folder")
        work(*local, scratch / "target")
        files = [path for path in (scratch / "target").rglob("*") if path.is_file()]
        for file in sorted(files, key=lambda path: (path.name == "config.json", path)):
            upload_verified(file, location, file.relative_to(scratch / "target").as_posix())


def _down(uri: str, folder: Path) -> Path:
    location = Location.parse(uri)
    if not location.is_s3:
        return Path(location.uri)
    download_folder(location, folder)
    return folder


def download_folder(location: Location, folder: Path) -> None:
    """Copy every object of a folder on S3.

    Raises:
        NotFoundError: It holds nothing.
    """
    files = location.list()
    if not files:
        raise NotFoundError(f"{location} holds no files")
    for file in files:
        file.store.download(file.key, path_below(folder, file.uri.removeprefix(f"{location.uri}/")))
