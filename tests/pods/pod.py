"""One pod that runs: the kubelet's part."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from kuberay_manifests import REPOSITORY
from pods.manifest import PodPlan, Probe
from pods.network import Place

_USERS = "root:x:0:0:root:/root:/bin/bash\nwarren:x:{user}:{user}::/home/warren:/bin/bash\n"
_GROUPS = "root:x:0:\nwarren:x:{user}:\n"
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 10.0, 300.0
_GONE = (ProcessLookupError, FileNotFoundError, IndexError)  # the container has ended, or has not begun
_CONTAINER = Path(__file__).with_name("container.sh")


@dataclass
class RunningPod:
    """A pod of namespaces: network, processes, files, IPC and host name.

    Its volumes live as long as the pod; a container that ends is started again on them, as the kubelet does.
    The Python, virtual environment and repository of this machine take the place of an image.

    Args:
        folder: An empty one, for its volumes and its log.
        hosts: Addresses of the services that it finds by name.
    """

    plan: PodPlan
    name: str
    place: Place
    folder: Path
    hosts: Mapping[str, str]
    restarts: int = 0
    ready: bool = False
    _process: "subprocess.Popen[bytes] | None" = None
    _started: float = 0.0
    _ended: float = 0.0
    _leaving: bool = False
    _asked: dict[str, float] = field(default_factory=dict)
    _failures: dict[str, int] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        """What the container prints."""
        return self.folder / "log"

    def start(self) -> None:
        """Start the container."""
        environment = {**self._settings(), **self.environment}
        words = ["setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", self.place.namespace]  # ends with its driver
        words += ["unshare", "--pid", "--mount", "--ipc", "--uts", "--fork", "--kill-child"]
        words += ["bash", "-c", 'hostname "$POD_NAME"; exec bash "$0" "$@"', str(_CONTAINER), *self.plan.command]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                words, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._started, self._ended, self.ready = time.monotonic(), 0.0, False
        self._asked.clear()
        self._failures.clear()

    @property
    def environment(self) -> dict[str, str]:
        """The variables of the container: the image's, then the manifest's, then the pod's own."""
        path = f"{Path(sys.prefix) / 'bin'}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        image = {"PATH": path, "HOME": "/home/warren", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
        own = {"RAY_CLOUD_INSTANCE_ID": self.name, "POD_NAME": self.name, "OMP_NUM_THREADS": "1"}
        return {**image, **own, **self.plan.environment}

    def tend(self) -> None:
        """Start an ended container again, and ask the probes whose time it is."""
        if self._process is None or self._leaving:
            return
        if self._process.poll() is not None:
            self.ready = False
            self._restart_when_due()
            return
        self._ask("readiness", self.plan.readiness)
        self._ask("liveness", self.plan.liveness)

    def _restart_when_due(self) -> None:
        """Start an ended container: the first time at once, then after pauses that double, as the kubelet does."""
        self._ended = self._ended or time.monotonic()
        pause_s = min(_FIRST_PAUSE_S * 2 ** (self.restarts - 1), _LONGEST_PAUSE_S) if self.restarts else 0.0
        if time.monotonic() >= self._ended + pause_s:
            self.restarts += 1
            self.start()

    def kill(self) -> None:
        """End every process of the container at once, as a power cut would, and wait until none is left."""
        if self._process is not None:
            with suppress(*_GONE):
                os.kill(self._first_pid(), signal.SIGKILL)  # it is reaped after all others of its namespace are gone
                self._process.wait()
            self._process.kill()
            self._process.wait()
        self.ready = False

    def delete(self) -> None:
        """Take the pod away without notice."""
        self.kill()
        self._process = None

    def leave(self) -> "subprocess.Popen[bytes]":
        """Begin to take the pod away in good order: start its `preStop`, and return that process.

        A container that ends meanwhile is not started again.
        """
        self.ready, self._leaving = False, True
        try:
            return self.execute(self.plan.pre_stop)
        except _GONE:
            self.delete()
            return subprocess.Popen(["true"])

    def execute(self, command: Sequence[str], variables: Mapping[str, str] | None = None) -> "subprocess.Popen[bytes]":
        """Run a command in the container, as its user; or, with variables of its own, as a container beside it."""
        target = [
            "nsenter",
            "--target",
            str(self._first_pid()),
            "--net",
            "--pid",
            "--mount",
            "--ipc",
            "--uts",
            "--root",
        ]
        user = str(self.plan.user)
        target += ["setpriv", "--reuid", user, "--regid", user, "--clear-groups", "--no-new-privs", "--"]
        target += ["env", "-C", self.plan.working_dir, *command]
        with self.log.open("ab") as log:
            environment = {**self.environment, **(variables or {})}
            return subprocess.Popen(target, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def terminate(self) -> None:
        """Ask the first process to end; it has until its grace is over."""
        with suppress(*_GONE, subprocess.TimeoutExpired):
            os.kill(self._first_pid(), signal.SIGTERM)
            assert self._process is not None
            self._process.wait(min(self.plan.grace_s, 30))
        self.delete()

    def _first_pid(self) -> int:
        if self._process is None:
            raise ProcessLookupError(f"{self.name} has no container")
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(children[0])

    def _settings(self) -> dict[str, str]:
        """Write what the container mounts, and return it as the variables of `container.sh`."""
        for name in ("root", "etc"):
            (self.folder / name).mkdir(exist_ok=True)
        user = self.plan.user
        hosts = {"localhost": "127.0.0.1", self.name: self.place.address, **self.hosts}
        lines = "".join(f"{address} {name}\n" for name, address in hosts.items())
        files = {"passwd": _USERS.format(user=user), "group": _GROUPS.format(user=user), "hosts": lines}
        for name, text in {**files, "resolv.conf": ""}.items():
            (self.folder / "etc" / name).write_text(text)
        code = dict.fromkeys(str(Path(path).resolve()) for path in (sys.base_prefix, sys.prefix, REPOSITORY))
        return {
            "ROOT": str(self.folder / "root"),
            "VOLUMES": "\n".join(f"{path}\t{source}" for path, source in self._volumes().items()),
            "CODE": "\n".join(code),
            "JOBS": str(REPOSITORY / "jobs"),
            "POD_ETC": str(self.folder / "etc"),
            "POD_USER": str(user),
            "READ_ONLY_ROOT": "yes" if self.plan.read_only_root else "no",
            "WORKING_DIR": self.plan.working_dir,
        }

    def _volumes(self) -> dict[str, str]:
        sources = {}
        for volume in self.plan.volumes:
            source = self.folder / "volumes" / volume.path.strip("/").replace("/", "-")
            if volume.size_bytes:
                sources[volume.path] = f"tmpfs:{volume.size_bytes}"
                continue
            source.mkdir(parents=True, exist_ok=True)
            for name, text in (volume.files or {}).items():
                (source / name).write_text(text)
            os.chown(source, self.plan.user, self.plan.user)
            sources[volume.path] = str(source)
        return sources

    def _ask(self, kind: str, probe: Probe | None) -> None:
        now = time.monotonic()
        if probe is None or now - self._started < probe.initial_delay_s:
            return
        if now - self._asked.get(kind, -probe.period_s) < probe.period_s:
            return
        self._asked[kind] = now
        good = answers(self.place.address, probe)
        self._failures[kind] = 0 if good else self._failures.get(kind, 0) + 1
        failed = self._failures[kind] >= probe.failures
        if kind == "liveness" and failed:
            self.kill()
        elif kind == "readiness" and (good or failed):
            self.ready = good


def answers(address: str, probe: Probe) -> bool:
    """Ask a probe's question from outside, as the kubelet does."""
    try:
        if probe.path is None:
            socket.create_connection((address, probe.port), probe.timeout_s).close()
            return True
        with urllib.request.urlopen(f"http://{address}:{probe.port}{probe.path}", timeout=probe.timeout_s) as answer:
            return bool(200 <= answer.status < 400)
    except (urllib.error.URLError, OSError):
        return False
