"""A Ray cluster with the endpoint on it, for one measurement."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from benchmarks.serve.model import NAME, publish_model
from warren.storage import Location
from warren.testbed import RayHead, free_port

_ROOT = Path(__file__).resolve().parents[2]
_READY_TIMEOUT_S = 180.0


class Endpoint:
    """Where the endpoint is, and how it is deployed.

    Attributes:
        url: Of the endpoint.
        release: What it serves.
        model_folder: The same, on this machine's disk.
        processes: Returns those of the cluster.
    """

    def __init__(self, head: RayHead, port: int, release: Location, model_folder: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.release = release
        self.model_folder = model_folder
        self.processes = head.processes
        self._port = port
        self._applications = f"{head.dashboard_url}/api/serve/applications/"

    def deploy(self, build: str, args: dict[str, Any]) -> None:
        """Put an application behind the endpoint, in place of the one that is there, and wait until it runs."""
        self.remove()
        application = {
            "name": "bench",
            "route_prefix": "/",
            "import_path": build,
            "args": {"release": self.release.uri, "model_name": NAME, "max_replicas": 1} | args,
            "runtime_env": {"env_vars": {"OMP_WAIT_POLICY": "PASSIVE"}},
        }
        config = {"http_options": {"host": "127.0.0.1", "port": self._port}, "applications": [application]}
        httpx.put(self._applications, json=config, timeout=60).raise_for_status()
        self._wait_for("RUNNING")

    def remove(self) -> None:
        """Take the application away and wait until it is gone."""
        httpx.delete(self._applications, timeout=60).raise_for_status()
        self._wait_for(None)

    def status(self) -> dict[str, Any] | None:
        """Return what Serve says of the application; None where there is none."""
        details: dict[str, Any] = httpx.get(self._applications, timeout=60).json()
        status: dict[str, Any] | None = details.get("applications", {}).get("bench")
        return status

    def _wait_for(self, expected: str | None) -> None:
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while (status := self.status() or {}).get("status") != expected:
            if status.get("status") == "DEPLOY_FAILED" or time.monotonic() > deadline:
                raise RuntimeError(f"the endpoint did not become {expected}: {status}")
            time.sleep(0.3)


@contextmanager
def endpoint(quick: bool, num_cpus: int = 4) -> Iterator[Endpoint]:
    """Start a cluster, publish the model, and end both, also when this process is asked to end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with TemporaryDirectory(prefix="warren-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        release = publish_model(Location.parse(str(folder / "store")), folder / "model", quick)
        sources = os.pathsep.join(str(path) for path in (_ROOT / "platform", _ROOT / "serve", _ROOT))
        environment = {"PYTHONPATH": sources, "OMP_NUM_THREADS": "1", "HOME": name, "TOKENIZERS_PARALLELISM": "false"}
        with RayHead(folder / "ray", num_cpus, environment, object_store_bytes=400_000_000) as head:
            yield Endpoint(head, free_port(), release, folder / "model")
