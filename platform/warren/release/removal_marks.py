"""Marks of releases that are being removed, so that nothing begins to need them meanwhile.

releases/NAME/removals/VERSION.json    from before its first file is deleted until after the last

Whoever removes a release marks it first and then looks at what needs it. Whoever begins to need one (an alias that
moves, a pin, a deployment) writes that first and then looks for the mark. So one of the two sees the other.
"""

import time

from warren.config import check_name
from warren.errors import ConflictError, NotFoundError, ReleaseError
from warren.storage import Location


def removal_mark(root: Location, name: str, version: str) -> Location:
    """Return where the mark of a version is."""
    return removals_folder(root, name) / f"{check_name(version, 'version')}.json"


def removals_folder(root: Location, name: str) -> Location:
    """Return the folder of a release's marks."""
    return root / "releases" / check_name(name, "release") / "removals"


def is_being_removed(root: Location, name: str, version: str) -> bool:
    """Tell whether a version is marked."""
    try:
        removal_mark(root, name, version).read_bytes()
    except NotFoundError:
        return False
    return True


def check_not_removed(root: Location, name: str, version: str) -> None:
    """Refuse a version that is being removed.

    Raises:
        ReleaseError: It is.
    """
    if is_being_removed(root, name, version):
        raise ReleaseError(
            f"release {name} {version} is being removed: take another version; a removal that was interrupted is "
            f"finished by `jobs/registry.py gc {name} --yes`, an hour later at the earliest"
        )


def mark_for_removal(root: Location, name: str, version: str, who: str) -> bool:
    """Mark a version; False: somebody has marked it already."""
    try:
        removal_mark(root, name, version).create_json({"who": who, "when": int(time.time())})
    except ConflictError:
        return False
    return True


def unmark(root: Location, name: str, version: str) -> None:
    """Remove the mark of a version that is kept, or is gone."""
    mark = removal_mark(root, name, version)
    mark.store.delete(mark.key)
