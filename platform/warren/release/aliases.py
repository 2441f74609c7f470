"""Aliases: movable names of releases. They move by compare-and-swap, so that two jobs never overwrite each other."""

import json
from typing import Literal, get_args

from warren.config import check_name
from warren.config.environment import storage_root
from warren.errors import ConfigError, ConflictError, NotFoundError, ReleaseError
from warren.release.release import read_release, release_folder
from warren.storage import Location

Alias = Literal["candidate", "stable"]
ALIASES: tuple[str, ...] = get_args(Alias)


def _alias(root: Location, name: str, alias: str) -> Location:
    return root / "releases" / check_name(name, "release") / "aliases" / f"{check_name(alias, 'alias')}.json"


def read_alias(root: Location, name: str, alias: Alias) -> str | None:
    """Return the version an alias names, or None where it was never set."""
    try:
        return str(_alias(root, name, alias).read_json()["version"])
    except NotFoundError:
        return None


def move_alias(root: Location, name: str, alias: Alias, version: str, expected: str | None) -> None:
    """Point an alias at a complete release.

    Args:
        expected: The version it names now, as `read_alias` returned it; None if it was not set.

    Raises:
        ConflictError: Another job has moved it since.
        ReleaseError: The release is not complete.
    """
    read_release(release_folder(root, name, version))
    target = _alias(root, name, alias)
    data = (json.dumps({"version": version}) + "\n").encode()
    if expected is None:
        target.create_bytes(data)
        return
    present, tag = target.store.read(target.key)
    if json.loads(present)["version"] != expected:
        raise ConflictError(
            f"alias {alias!r} of {name} names {json.loads(present)['version']}, not {expected}: "
            "read it again, and move it from there"
        )
    target.store.replace(target.key, data, tag)


def resolve_release(uri: str) -> str:
    """Turn `…/releases/NAME/ALIAS` into the URI of the version it names now; a version's URI stays as it is.

    Args:
        uri: A release's URI or path, or `NAME/VERSION` or `NAME/ALIAS` for one below `WARREN_STORAGE`.

    Raises:
        ReleaseError: The alias was never set.
        ConfigError: The release is one below `WARREN_STORAGE`, which is not set.
    """
    location = _locate(uri)
    if location.name not in ALIASES:
        return location.uri
    folder = Location(location.uri.rsplit("/", 1)[0])
    root = Location(folder.uri.rsplit("/", 2)[0])
    version = read_alias(root, folder.name, location.name)  # type: ignore[arg-type]
    if version is None:
        raise ReleaseError(f"{uri}: no release was ever {location.name}: run jobs/release.py first")
    return (folder / version).uri


def _locate(text: str) -> Location:
    name, _, version = text.strip().rstrip("/").partition("/")
    try:
        check_name(name, "release")
        check_name(version, "version")
    except ConfigError:  # a URI, a path, or nothing of either, which the storage says
        return Location.parse(text)
    return release_folder(Location.parse(storage_root()), name, version)
