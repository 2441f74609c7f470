"""The stored state of an endpoint's rollouts, behind compare-and-swap.

releases/NAME/rollouts/ENDPOINT.json             the state and the last events; written by the controller alone
releases/NAME/rollouts/ENDPOINT.command.json     the last command; written by `jobs/rollout.py`

Every controller has an epoch, one more than the controller before it. Of two controllers on one endpoint, the newer
one is the owner. The older one finds out at its next write or look, and stops.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from warren.config import check_name
from warren.config.names import check_endpoint
from warren.errors import ConflictError, NotFoundError, ServiceError
from warren.rollout.state_machine import CommandAction, RolloutCommand, RolloutState, taken_over
from warren.storage import Location

_MAX_EVENTS = 200


class SupersededError(ServiceError):
    """Another controller has taken over this endpoint; this one must not act any more."""


@dataclass(frozen=True)
class RolloutRecord:
    """What is stored of an endpoint.

    Attributes:
        epoch: Of the controller that wrote it.
        owner: What that controller calls itself.
        events: The last changes, oldest first. Their times are wall times and only shown.
    """

    epoch: int = 0
    owner: str = ""
    state: RolloutState = field(default_factory=RolloutState)
    events: tuple[Mapping[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON types."""
        state = {**asdict(self.state), "refused": dict(self.state.refused)}
        return {"epoch": self.epoch, "owner": self.owner, "state": state, "events": list(self.events)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "RolloutRecord":
        """Rebuild what `to_json` returned; fields of another version of Warren are left out."""
        # During an upgrade, a controller of the former version may have written the state.
        known = {each.name for each in fields(RolloutState)}
        state = RolloutState(**{name: one for name, one in value["state"].items() if name in known})
        return cls(int(value["epoch"]), str(value["owner"]), state, tuple(value["events"]))


class RolloutFiles:
    """The files of one endpoint.

    Args:
        root: Where releases live.
        name: The release's name.
        endpoint: Name of the Serve application that the rollouts are of.
    """

    def __init__(self, root: Location, name: str, endpoint: str) -> None:
        self.name, self.endpoint = name, endpoint
        folder = root / "releases" / check_name(name, "release") / "rollouts"
        self._state = folder / f"{check_endpoint(endpoint)}.json"
        self._command = folder / f"{endpoint}.command.json"

    def read(self) -> RolloutRecord:
        """Return the stored record; an empty one if no controller has written yet."""
        return self._read()[0]

    def read_command(self) -> RolloutCommand | None:
        """Return the last command."""
        try:
            return RolloutCommand(**self._command.read_json())
        except NotFoundError:
            return None

    def send(self, action: CommandAction, version: str | None = None, by: str = "", reason: str = "") -> RolloutCommand:
        """Store a command for the controller.

        Raises:
            ServiceError: The last command has not been obeyed yet.
            ConflictError: Somebody else gave a command at the same time.
        """
        try:
            data, tag = self._command.store.read(self._command.key)
            last = RolloutCommand(**json.loads(data))
        except NotFoundError:
            last, tag = None, ""
        handled = self.read().state.handled_command
        # Only the last command is stored, so a new one would replace one that nobody has read.
        if last is not None and last.number > handled:
            raise ServiceError(f"the command {last.action!r} before this one has not been obeyed yet: try again later")
        # Above both: the command's file may be gone while the state remembers its number.
        command = RolloutCommand(max(handled, last.number if last else 0) + 1, action, version, by, reason)
        data = _encoded(asdict(command))
        if last is None:
            self._command.create_bytes(data)
        else:
            self._command.store.replace(self._command.key, data, tag)
        return command

    def take_over(self, owner: str) -> "RolloutOwner":
        """Become the endpoint's controller; one that was there before stops.

        Raises:
            ConflictError: Another controller takes over at the same time.
        """
        record, tag = self._read()
        taken = replace(record, epoch=record.epoch + 1, owner=owner, state=taken_over(record.state))
        return RolloutOwner(self._state, taken, self._write(taken, tag))

    def _read(self) -> tuple[RolloutRecord, str | None]:
        try:
            data, tag = self._state.store.read(self._state.key)
        except NotFoundError:
            return RolloutRecord(), None
        return RolloutRecord.from_json(json.loads(data)), tag

    def _write(self, record: RolloutRecord, tag: str | None) -> str:
        return _write(self._state, record, tag)


class RolloutOwner:
    """The right to write an endpoint's state; made by `RolloutFiles.take_over`.

    Attributes:
        record: What is stored.
    """

    def __init__(self, location: Location, record: RolloutRecord, tag: str) -> None:
        self._location, self.record, self._tag = location, record, tag

    def save(self, state: RolloutState) -> None:
        """Store a changed state, with an event that says what changed.

        Raises:
            SupersededError: Another controller has taken over.
        """
        events = (*self.record.events, _event(self.record.state, state))[-_MAX_EVENTS:]
        changed = replace(self.record, state=state, events=events)
        try:
            self._tag = _write(self._location, changed, self._tag)
        except ConflictError:
            self.check()
            raise
        self.record = changed

    def check(self) -> None:
        """Make sure that this controller still owns the endpoint.

        Raises:
            SupersededError: Another controller has taken over.
        """
        data, tag = self._location.store.read(self._location.key)
        stored = RolloutRecord.from_json(json.loads(data))
        if (stored.epoch, stored.owner) != (self.record.epoch, self.record.owner):
            raise SupersededError(
                f"the controller {stored.owner!r} (epoch {stored.epoch}) has taken over this endpoint, so this one "
                f"({self.record.owner!r}, epoch {self.record.epoch}) stops"
            )
        self._tag = tag


def _write(location: Location, record: RolloutRecord, tag: str | None) -> str:
    """Write a record over the one with a tag, and return the tag of what was written."""
    data = _encoded(record.to_json())
    if tag is None:
        location.create_bytes(data)
    else:
        location.store.replace(location.key, data, tag)
    # The tag is needed for the next write, and not every store returns it from a write.
    written, new_tag = location.store.read(location.key)
    if written != data:
        raise ConflictError(f"{location} was changed by another controller just after it was written")
    return new_tag


def _encoded(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def _event(before: RolloutState, after: RolloutState) -> dict[str, Any]:
    return {
        "at": int(time.time()),
        "phase": after.phase,
        "step": after.step,
        "version": after.candidate or before.candidate or after.stable,
        "stable": after.stable,
        "paused": after.is_paused,
        "reason": after.reason,
    }
