"""What the rollout controller asks of a release: that its files are whole, and that nobody changes them meanwhile."""

import json

from warren.errors import NotFoundError, StorageError, WarrenError
from warren.release import read_release, release_folder
from warren.release.release import MANIFEST
from warren.rollout.state_machine import Judgement
from warren.storage import Location, digest_bytes

_GATE_FILE = "verdict.json"


class ReleaseChecks:
    """Checks the versions of one release.

    Args:
        root: Where releases live.
        name: The release's name.
    """

    def __init__(self, root: Location, name: str) -> None:
        self._root, self._name = root, name
        self._verified: tuple[str, Judgement] | None = None
        self._manifest: tuple[str, str] | None = None

    def verify(self, version: str) -> Judgement:
        """Return what `verify` says of a candidate, once."""
        if self._verified is None or self._verified[0] != version:
            judgement = verify(self._root, self._name, version)
            self._manifest = (version, self._manifest_digest(version)) if judgement.is_good else None
            self._verified = version, judgement
        return self._verified[1]

    def forget(self) -> None:
        """Verify the next candidate anew, also if it has the same name."""
        self._verified = None

    def changed(self, version: str) -> str:
        """Return what of a release has changed since it was verified; empty if nothing has.

        A controller that took over in the middle compares the files with the manifest as it is now.
        """
        judgement = verify(self._root, self._name, version)
        if not judgement.is_good:
            return judgement.reason
        is_known = self._manifest is not None and self._manifest[0] == version
        if is_known and self._manifest != (version, self._manifest_digest(version)):
            return f"its {MANIFEST} has changed since its engines started"
        return ""

    def gate_refusal(self, version: str) -> str:
        """Return why the stored verdict of the gate refuses a version; empty if it does not, or if there is none."""
        try:
            verdict = (release_folder(self._root, self._name, version) / _GATE_FILE).read_json()
        except (NotFoundError, json.JSONDecodeError):
            return ""
        if not isinstance(verdict, dict) or verdict.get("passed", True) or verdict.get("override"):
            return ""
        failed = [str(check.get("reason")) for check in verdict.get("checks", ()) if not check.get("passed")]
        return f"the gate refused {version}: {'; '.join(failed) or 'no reason is stored'}"

    def _manifest_digest(self, version: str) -> str:
        return digest_bytes((release_folder(self._root, self._name, version) / MANIFEST).read_bytes())


def verify(root: Location, name: str, version: str) -> Judgement:
    """Check that a release is complete: its manifest, and that every file has its size.

    The bytes are checked by the engines, while they download them.

    Raises:
        StorageError: Storage does not answer.
    """
    try:
        folder = release_folder(root, name, version)
        release = read_release(folder)
        for entry in release.files:
            size = folder.store.size((folder / entry.path).key)
            if size != entry.bytes:
                return Judgement(False, f"{entry.path} has {size} bytes, the manifest says {entry.bytes}")
    except NotFoundError as error:
        return Judgement(False, f"a file of the release is missing: {error}")
    except (KeyError, TypeError, ValueError) as error:
        return Judgement(False, f"the manifest cannot be read: {error!r}")
    except StorageError:
        raise
    except WarrenError as error:
        return Judgement(False, str(error))
    return Judgement(True)
