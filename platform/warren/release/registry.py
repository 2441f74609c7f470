"""The registry: the releases of one name in storage, their aliases, pins and verdicts."""

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from warren.config import check_name
from warren.errors import ConflictError, NotFoundError, ReleaseError
from warren.release.aliases import (
    ALIASES,
    Alias,
    AliasMove,
    MoveKind,
    move_alias,
    read_alias,
    read_history,
    user_name,
    version_before,
)
from warren.release.deployments import read_deployments
from warren.release.records import read_record
from warren.release.release import MANIFEST, RESERVED, Release, read_release, release_folder
from warren.release.removal_marks import check_not_removed
from warren.release.verdict import GateVerdict, read_verdict
from warren.storage import Location


@dataclass(frozen=True)
class Pin:
    """A version that is kept until somebody takes the pin away."""

    who: str
    when: int
    why: str


@dataclass(frozen=True)
class Difference:
    """One fact in which two releases differ; None: one of them does not have it."""

    key: str
    first: Any
    second: Any


@dataclass(frozen=True)
class Registry:
    """The releases of one name.

    Attributes:
        root: Where releases live.
        name: What the versions are versions of.
    """

    root: Location
    name: str

    def __post_init__(self) -> None:
        check_name(self.name, "release")

    @staticmethod
    def names(root: Location) -> list[str]:
        """Return every name that has a complete release."""
        paths = (_parts(root / "releases", each) for each in (root / "releases").list())
        return sorted({parts[0] for parts in paths if _is_manifest(parts[1:])})

    @property
    def folder(self) -> Location:
        """Where the versions are, and the aliases, pins and deployments beside them."""
        return self.root / "releases" / self.name

    def versions(self) -> list[str]:
        """Return the complete versions, sorted by name."""
        paths = (_parts(self.folder, each) for each in self.folder.list())
        return sorted(parts[0] for parts in paths if _is_manifest(parts))

    def releases(self) -> list[Release]:
        """Return the complete releases, the oldest first."""
        releases = []
        for version in self.versions():
            with suppress(ReleaseError):  # removed since they were listed
                releases.append(self.read(version))
        return sorted(releases, key=lambda release: (release.created, release.version))

    def resolve(self, version: str) -> str:
        """Return a version, or the one that an alias names now.

        Raises:
            ReleaseError: The alias was never set.
        """
        named = self.alias(version) if version in ALIASES else version  # type: ignore[arg-type]
        if named is None:
            raise ReleaseError(f"no release of {self.name!r} was ever {version}: run jobs/release.py first")
        return named

    def read(self, version: str) -> Release:
        """Read a complete release by its version or by an alias.

        Raises:
            ReleaseError: There is none; the message names those there are.
        """
        named = self.resolve(version)
        try:
            return read_release(release_folder(self.root, self.name, named))
        except ReleaseError:
            # The newest names are enough to see a typing error.
            present = ", ".join(self.versions()[-10:]) or "none"
            raise ReleaseError(f"no release {named!r} of {self.name!r}; versions: {present}") from None

    def verdict(self, version: str) -> GateVerdict | None:
        """Return what the gate said of a version; None for releases of before gates were recorded."""
        return read_verdict(release_folder(self.root, self.name, self.resolve(version)))

    def alias(self, alias: Alias) -> str | None:
        """Return the version an alias names, or None where it was never set."""
        return read_alias(self.root, self.name, alias)

    def aliases(self) -> dict[str, str]:
        """Return the aliases that are set, and their versions."""
        named = {alias: self.alias(alias) for alias in ALIASES}  # type: ignore[arg-type]
        return {alias: version for alias, version in named.items() if version is not None}

    def history(self, alias: Alias) -> list[AliasMove]:
        """Return every move of an alias, oldest first."""
        return read_history(self.root, self.name, alias)

    def move(
        self,
        alias: Alias,
        version: str,
        expected: str | None,
        who: str | None = None,
        why: str = "",
        kind: MoveKind = "move",
    ) -> AliasMove:
        """Point an alias at a complete release and record the move; see `move_alias`."""
        return move_alias(self.root, self.name, alias, version, expected, who, why, kind)

    def rollback(self, alias: Alias, why: str, who: str | None = None) -> AliasMove:
        """Point an alias at the version that it named before the newest move that was not undone yet.

        Raises:
            ReleaseError: There is no such move, or the version is gone.
            ConflictError: Another job moved the alias meanwhile.
        """
        moves = self.history(alias)
        version = version_before(moves, alias)
        self.read(version)
        return self.move(alias, version, moves[-1].after, who, why, kind="rollback")

    def pin(self, version: str, why: str, who: str | None = None) -> Pin:
        """Keep a version whatever else becomes of it. A version that is pinned already keeps its pin.

        Raises:
            ReleaseError: There is no such release, or it is being removed.
        """
        named = self.read(version).version
        pin = Pin(who or user_name(), int(time.time()), why)
        try:
            self._pin(named).create_json(asdict(pin))
        except ConflictError:
            pin = read_record(self._pin(named), lambda value: Pin(**value))
        check_not_removed(self.root, self.name, named)
        return pin

    def unpin(self, version: str) -> None:
        """Take a pin away.

        Raises:
            ReleaseError: The version is not pinned.
        """
        named = self.resolve(version)
        if named not in self.pins():
            raise ReleaseError(f"{self.name} {named} is not pinned; pinned are: {', '.join(self.pins()) or 'none'}")
        pin = self._pin(named)
        pin.store.delete(pin.key)

    def pins(self) -> dict[str, Pin]:
        """Return the pins, by version."""
        pins = {}
        for each in (self.folder / "pins").list():
            with suppress(NotFoundError):  # taken away since they were listed
                pins[each.name.removesuffix(".json")] = read_record(each, lambda value: Pin(**value))
        return pins

    def deployments(self) -> dict[str, tuple[str, ...]]:
        """Return the versions that endpoints say they run, by endpoint."""
        return read_deployments(self.root, self.name)

    def diff(self, first: str, second: str) -> list[Difference]:
        """Return in what two releases differ: scores, lineage with recipe and packages, and files."""
        facts, others = _facts(self.read(first)), _facts(self.read(second))
        keys = dict.fromkeys([*facts, *others])
        return [Difference(key, facts.get(key), others.get(key)) for key in keys if facts.get(key) != others.get(key)]

    def _pin(self, version: str) -> Location:
        return self.folder / "pins" / f"{check_name(version, 'version')}.json"


def _parts(folder: Location, each: Location) -> list[str]:
    return each.uri.removeprefix(f"{folder.uri}/").split("/")


def _is_manifest(parts: list[str]) -> bool:
    """Whether a path below a name's folder is `VERSION/release.json`, and not the pin of a version called `release`."""
    return len(parts) == 2 and parts[1] == MANIFEST and parts[0] not in RESERVED


def _facts(release: Release) -> dict[str, Any]:
    """Return a release as flat facts; files by their digests."""
    value = release.to_json()
    files = {entry.path: entry.sha256[:12] for entry in release.files}
    lineage = {key: each for key, each in value["lineage"].items() if key not in ("created", "changes")}
    return _flat({"scores": value["scores"], **lineage, "files": files})


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for key, each in value.items():
        # A list of records is compared record by record, by their numbers.
        if isinstance(each, list) and any(isinstance(item, Mapping) for item in each):
            each = {str(number): item for number, item in enumerate(each)}
        if isinstance(each, Mapping) and each:
            facts |= _flat(each, f"{prefix}{key}.")
        else:
            facts[f"{prefix}{key}"] = each
    return facts
