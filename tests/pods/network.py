"""A bridge, and network namespaces with addresses of their own on it."""

import fcntl
import os
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_BRIDGE = "warrenpods"
_PREFIX = "warren-pod-"  # every namespace of these tests, and nobody else's, begins so
_NETWORK = "10.93.0"
_LOCK = Path("/run/lock/warren-pods")


@dataclass(frozen=True)
class Place:
    """A host on the network.

    Attributes:
        namespace: Name for `ip netns`.
        address: Its IPv4 address.
        cable: The bridge's end of its link.
    """

    namespace: str
    address: str
    cable: str


class PodNetwork:
    """The network of one run; `create` first removes what a run that was killed left behind."""

    def __init__(self) -> None:
        self._count = 1
        self._lock: IO[str] | None = None

    @property
    def gateway(self) -> str:
        """This machine's own address on the network."""
        return f"{_NETWORK}.1"

    def create(self) -> None:
        """Make the bridge.

        Raises:
            OSError: Another run has it, or this machine does not let root make one.
        """
        _LOCK.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _LOCK.open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError("another run has the network of the pods: wait for its end") from error
        self.remove()
        _ip("link", "add", _BRIDGE, "type", "bridge")
        _ip("addr", "add", f"{self.gateway}/24", "dev", _BRIDGE)
        _ip("link", "set", _BRIDGE, "up")

    def add(self) -> Place:
        """Make a host. It has a default route, because Ray looks for its own address there."""
        self._count += 1
        name, number = f"{_PREFIX}{self._count}", self._count
        place = Place(name, f"{_NETWORK}.{number}", f"warrenpod{number}")
        _ip("netns", "add", name)
        _ip("link", "add", place.cable, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", place.cable, "master", _BRIDGE, "up")
        _ip("-n", name, "addr", "add", f"{place.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", name, "link", "set", device, "up")
        _ip("-n", name, "route", "add", "default", "via", self.gateway)
        return place

    def cut(self, place: Place) -> None:
        """Pull the cable of a host."""
        _ip("link", "set", place.cable, "down")

    def mend(self, place: Place) -> None:
        """Put the cable back."""
        _ip("link", "set", place.cable, "up")

    def remove(self) -> None:
        """End every process in these namespaces, and remove them and the bridge."""
        listed = _ip("netns", "list").split("\n")
        for name in (line.split()[0] for line in listed if line.startswith(_PREFIX)):
            for pid in _ip("netns", "pids", name).split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            _ip("netns", "del", name)
        if f" {_BRIDGE}:" in _ip("link"):
            _ip("link", "del", _BRIDGE)


def _ip(*words: str) -> str:
    result = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise OSError(f"`ip {' '.join(words)}` ended with {result.returncode}: {result.stderr.strip()}")
    return result.stdout
