"""A Ray head of its own on loopback: own ports, own folder, own token; ended by its own process, never `ray stop`."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import psutil

from warren.compat.ray_cli import ADDRESS_VARIABLE, client_variables, ray_command
from warren.errors import ServiceError
from warren.testbed.parent_death import ending_with_parent
from warren.testbed.ports import free_port

_READY_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 5.0  # Ray's own way takes over 20 s, of a cluster that is thrown away
_LOOPBACK = "127.0.0.1"


class RayHead:
    """One `ray start --head --block` process.

    Args:
        folder: Ray's temporary folder; keep its path short, it holds Unix sockets.
        num_cpus: Logical CPUs it offers.
        environment: Variables for every process of the cluster, for example storage and credentials.
        object_store_bytes: Size of the shared-memory object store.
        token: What clients must send; None switches authentication off.
    """

    def __init__(
        self,
        folder: Path,
        num_cpus: int,
        environment: Mapping[str, str],
        object_store_bytes: int = 2_500_000_000,
        token: str | None = None,
    ) -> None:
        self.folder = folder
        taken: set[int] = set()
        self._gcs_port, self.dashboard_port, *self._other_ports = (free_port(taken) for _ in range(9))
        self._num_cpus = num_cpus
        self._object_store_bytes = object_store_bytes
        self._environment = dict(environment)
        self._token = token
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def dashboard_url(self) -> str:
        """Where jobs are submitted and the dashboard is."""
        return f"http://{_LOOPBACK}:{self.dashboard_port}"

    @property
    def metrics_url(self) -> str:
        """Where Prometheus finds this node's metrics, those of running jobs among them."""
        return f"http://{_LOOPBACK}:{self._other_ports[3]}/metrics"

    @property
    def environment(self) -> dict[str, str]:
        """Variables that make a process a client of this cluster: `ray job submit` and `ray.init` find it."""
        return {**self._environment, **client_variables(self.dashboard_url, self._token)}

    @property
    def driver_address(self) -> str:
        """What `ray.init` takes as `RAY_ADDRESS` in a driver outside a job."""
        return f"{_LOOPBACK}:{self._gcs_port}"

    def start(self) -> "RayHead":
        """Start it and wait until it takes jobs.

        Raises:
            ServiceError: It does not come up.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, **self.environment}
        environment.pop(ADDRESS_VARIABLE)
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
        with (self.folder / "head.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=ending_with_parent(),
            )
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            if self._answers():
                return self
            time.sleep(0.2)
        self.stop()
        raise ServiceError(f"Ray did not start; see {self.folder / 'head.log'}")

    def processes(self) -> list[psutil.Process]:
        """Return every process of this cluster but the first."""
        if self._process is None or self._process.poll() is not None:
            return []
        try:
            return list(psutil.Process(self._process.pid).children(recursive=True))
        except psutil.NoSuchProcess:
            return []

    def kill(self) -> None:
        """End every process at once, as a power cut would; `start` brings up an empty cluster at the same address."""
        if self._process is None:
            return
        for process in [psutil.Process(self._process.pid), *self.processes()]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        self._process = None

    def stop(self) -> None:
        """End every process of this cluster, and of this cluster only."""
        if self._process is None:
            return
        processes = self.processes()  # those that lose their parent are not found afterwards
        group = os.getpgid(self._process.pid) if self._process.poll() is None else self._process.pid
        self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_TIMEOUT_S)
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def __enter__(self) -> "RayHead":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _command(self) -> list[str]:
        names = (
            "dashboard-agent-listen-port",
            "dashboard-agent-grpc-port",
            "runtime-env-agent-port",
            "metrics-export-port",
            "ray-client-server-port",
            "object-manager-port",
            "node-manager-port",
        )
        return [
            *ray_command("start", "--head", "--block", "--disable-usage-stats"),
            f"--node-ip-address={_LOOPBACK}",
            f"--port={self._gcs_port}",
            f"--dashboard-host={_LOOPBACK}",
            f"--dashboard-port={self.dashboard_port}",
            *(f"--{name}={port}" for name, port in zip(names, self._other_ports, strict=True)),
            f"--num-cpus={self._num_cpus}",
            f"--object-store-memory={self._object_store_bytes}",
            f"--temp-dir={self.folder}",
        ]

    def _answers(self) -> bool:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        request = urllib.request.Request(f"{self.dashboard_url}/api/jobs/", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False
