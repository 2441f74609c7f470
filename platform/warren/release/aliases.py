"""Aliases: movable names of releases, with the history of their moves.

releases/NAME/aliases/ALIAS.json                  the current version, and the newest moves
releases/NAME/aliases/history/ALIAS-00000001.json  older moves, in immutable files of `_BLOCK` moves each

The current version and its newest moves are one object, replaced by compare-and-swap: either both change or neither
does, so two jobs never overwrite each other and no move is lost. Once the object holds two blocks of moves, the older
block is written to a file of its own first, so the object stays small. The files of one block are the same whoever
writes them.
"""

import getpass
import json
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from warren.config import check_name
from warren.config.environment import storage_root
from warren.errors import ConfigError, ConflictError, NotFoundError, ReleaseError
from warren.release.records import parse_record, read_record
from warren.release.release import read_release, release_folder
from warren.release.removal_marks import check_not_removed
from warren.storage import Location

Alias = Literal["candidate", "stable"]
ALIASES: tuple[str, ...] = get_args(Alias)
_BLOCK = 50

MoveKind = Literal["move", "rollback"]


@dataclass(frozen=True)
class AliasMove:
    """One move of an alias.

    Attributes:
        number: Of the moves of this alias, from 1; the order of moves is theirs, whatever the clocks say.
        before: The version that the alias named before; None: none.
        after: The version that it names since.
        who: A person or a service.
        when: Seconds since 1970.
        why: The reason.
        kind: `rollback` undoes the newest move that was not undone yet.
        id: Tells apart moves that are equal otherwise.
    """

    number: int
    before: str | None
    after: str
    who: str
    when: int
    why: str
    kind: MoveKind = "move"
    id: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the value as JSON types."""
        names = {"before": "from", "after": "to"}
        return {names.get(key, key): value for key, value in self.__dict__.items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "AliasMove":
        """Rebuild what `to_json` returned."""
        names = {"from": "before", "to": "after"}
        return cls(**{names.get(key, key): each for key, each in value.items()})


@dataclass(frozen=True)
class AliasState:
    """What the alias' object holds: the current version and the newest moves, oldest first."""

    version: str | None = None
    moves: tuple[AliasMove, ...] = ()

    @property
    def next_number(self) -> int:
        """The number of the next move."""
        return self.moves[-1].number + 1 if self.moves else 1

    def to_bytes(self) -> bytes:
        """Return the object's content. Earlier versions of Warren read its `version`."""
        value = {"version": self.version, "history": [move.to_json() for move in self.moves]}
        return (json.dumps(value, indent=1) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "AliasState":
        """Read the object; one of an earlier version has no history."""
        value = json.loads(data)
        return cls(str(value["version"]), tuple(AliasMove.from_json(move) for move in value.get("history", ())))


def read_alias(root: Location, name: str, alias: Alias) -> str | None:
    """Return the version an alias names, or None where it was never set."""
    return _read(_object(root, name, alias))[0].version


def read_history(root: Location, name: str, alias: Alias) -> list[AliasMove]:
    """Return every move of an alias, oldest first. Moves by earlier versions of Warren were not recorded."""
    older: dict[int, AliasMove] = {}
    for block in _blocks(root, name).list():
        if block.name.rpartition("-")[0] == alias:
            moves = read_record(block, lambda value: [AliasMove.from_json(each) for each in value])
            # A block may be written while its moves are still in the object: equal numbers are equal moves.
            older |= {move.number: move for move in moves}
    newest = _read(_object(root, name, alias))[0].moves
    return [move for _, move in sorted((older | {move.number: move for move in newest}).items())]


def move_alias(
    root: Location,
    name: str,
    alias: Alias,
    version: str,
    expected: str | None,
    who: str | None = None,
    why: str = "",
    kind: MoveKind = "move",
) -> AliasMove:
    """Point an alias at a complete release and record the move.

    Args:
        expected: The version it names now, as `read_alias` returned it; None if it was not set.
        who: Who moves it; None takes the name of this process's user.
        why: The reason, for people who read the history.
        kind: `rollback` undoes the newest move that was not undone yet.

    Raises:
        ConflictError: Another job has moved it since.
        ReleaseError: The release is not complete, or is being removed.
    """
    _check_whole(root, name, version)
    target = _object(root, name, alias)
    state, tag = _read(target)
    if state.version != expected:
        raise _moved(name, alias, state.version, expected)
    move = AliasMove(
        state.next_number, state.version, version, who or user_name(), int(time.time()), why, kind, uuid.uuid4().hex[:8]
    )
    _write(target, _blocks(root, name), alias, replace(state, version=version, moves=(*state.moves, move)), tag)
    try:
        check_not_removed(root, name, version)  # a removal that began meanwhile looks at the aliases after this
    except ReleaseError:
        if expected is not None:
            move_alias(root, name, alias, expected, version, move.who, f"{version} is being removed", "rollback")
        raise
    return move


def version_before(moves: list[AliasMove], alias: str) -> str:
    """Return the version that an alias named before the newest move that was not undone yet.

    Raises:
        ReleaseError: There is no such move.
    """
    standing: list[AliasMove] = []
    for move in moves:
        if move.kind == "rollback" and standing:
            standing.pop()
        # A move to the same version changed nothing, so there is nothing to go back to.
        elif move.before != move.after:
            standing.append(move)
    if not standing or standing[-1].before is None:
        raise ReleaseError(f"the alias {alias!r} has no earlier version to go back to: promote the version by its name")
    return standing[-1].before


def resolve_release(uri: str) -> str:
    """Turn `…/releases/NAME/ALIAS` into the URI of the version it names now; a version's URI stays as it is.

    Args:
        uri: A release's URI or path, or `NAME/VERSION` or `NAME/ALIAS` for one below `WARREN_STORAGE`.

    Raises:
        ReleaseError: The alias was never set.
        ConfigError: The release is one below `WARREN_STORAGE`, which is not set.
    """
    location = locate_release(uri)
    if location.name not in ALIASES:
        return location.uri
    folder = Location(location.uri.rsplit("/", 1)[0])
    root = Location(folder.uri.rsplit("/", 2)[0])
    version = read_alias(root, folder.name, location.name)  # type: ignore[arg-type]
    if version is None:
        raise ReleaseError(f"{uri}: no release was ever {location.name}: run jobs/release.py first")
    return (folder / version).uri


def user_name() -> str:
    """Return the name of this process's user, or `unknown` where the system has none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user without an entry in /etc/passwd
        return "unknown"


def _object(root: Location, name: str, alias: str) -> Location:
    return root / "releases" / check_name(name, "release") / "aliases" / f"{check_name(alias, 'alias')}.json"


def _blocks(root: Location, name: str) -> Location:
    return root / "releases" / check_name(name, "release") / "aliases" / "history"


def _check_whole(root: Location, name: str, version: str) -> None:
    check_not_removed(root, name, version)
    read_release(release_folder(root, name, version))


def _read(target: Location) -> tuple[AliasState, str | None]:
    """Return what an alias' object holds and its tag; None: there is no such object."""
    try:
        data, tag = target.store.read(target.key)
    except NotFoundError:
        return AliasState(), None
    return parse_record(target, lambda: data, AliasState.from_bytes), tag


def _write(target: Location, blocks: Location, alias: str, state: AliasState, tag: str | None) -> None:
    """Replace an alias' object if its tag is still `tag`.

    Raises:
        ConflictError: It is not.
    """
    if len(state.moves) > 2 * _BLOCK:
        oldest, kept = state.moves[:_BLOCK], state.moves[_BLOCK:]
        with suppress(ConflictError):  # somebody who then lost the swap has written the same
            (blocks / f"{alias}-{oldest[0].number:08d}.json").create_json([move.to_json() for move in oldest])
        state = replace(state, moves=kept)
    try:
        if tag is None:
            target.create_bytes(state.to_bytes())
        else:
            target.store.replace(target.key, state.to_bytes(), tag)
    except ConflictError:
        # A conflict may be with our own write, whose answer was lost.
        present = _read(target)[0]
        if state.moves[-1] in present.moves:  # ours was written, its answer was lost, and others have moved since
            return
        raise _moved(target.uri.split("/")[-3], alias, present.version, state.moves[-1].before) from None


def _moved(name: str, alias: str, present: str | None, expected: str | None) -> ConflictError:
    return ConflictError(
        f"the alias {alias!r} of {name} names {present or 'no version'}, not {expected or 'none'}: another job moved "
        "it meanwhile; read it again, and move it from there"
    )


def locate_release(text: str) -> Location:
    """Return where a release is.

    Args:
        text: `NAME`, `NAME/VERSION` or `NAME/ALIAS`, which are below `WARREN_STORAGE`; or a URI or path.

    Raises:
        ConfigError: The release is one below `WARREN_STORAGE`, which is not set.
    """
    name, _, version = text.strip().rstrip("/").partition("/")
    try:
        check_name(name, "release")
        if version:
            check_name(version, "version")
    except ConfigError:  # a URI, a path, or nothing of either, which the storage says
        return Location.parse(text)
    folder = Location.parse(storage_root()) / "releases" / name
    return folder / version if version else folder
