"""The endpoint of the tests: applications deployed as `serve deploy` does it, and what Ray Serve says of them."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx

from cluster_fixtures import Cluster
from warren.inference.testing import save_random_model
from warren.release import Lineage, publish
from warren.storage import FileEntry, Location, StoredFiles, digest_file

ValueT = TypeVar("ValueT")
APPLICATION = "chat"


class Endpoint:
    """The session's Serve instance, through its REST API."""

    def __init__(self, cluster: Cluster) -> None:
        self._rest = f"{cluster.dashboard_url}/api/serve/applications/"
        self._port = cluster.serve_port
        self.url = f"http://127.0.0.1:{cluster.serve_port}"

    def deploy(self, *applications: dict[str, Any]) -> None:
        """Make these the applications there are; the status of each tells how far it is."""
        options = {"host": "127.0.0.1", "port": self._port}
        config = {"proxy_location": "HeadOnly", "http_options": options, "applications": list(applications)}
        httpx.put(self._rest, json=config, timeout=60).raise_for_status()

    def application(self, name: str = APPLICATION) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(self._rest, timeout=60).json()["applications"].get(name, {})
        return found

    def wait_for_status(self, *statuses: str, name: str = APPLICATION) -> dict[str, Any]:
        """Wait until an application has one of these statuses, and return what Serve says of it."""
        return wait_for(lambda: one if (one := self.application(name)).get("status") in statuses else None)

    def pids(self, deployment: str, name: str = APPLICATION) -> set[int]:
        """Return the processes of the replicas that run."""
        replicas = self.application(name)["deployments"][deployment]["replicas"]
        return {replica["pid"] for replica in replicas if replica["state"] == "RUNNING"}

    def wait_for_replicas(self, deployment: str, wanted: int) -> None:
        wait_for(lambda: len(self.pids(deployment)) == wanted)

    def close(self) -> None:
        httpx.delete(self._rest, timeout=60)


def wait_for(look: Callable[[], ValueT | None], timeout_s: float = 120.0) -> ValueT:
    """Look until there is something to see, and return it."""
    deadline = time.monotonic() + timeout_s
    while not (value := look()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.3)
    return value


def chat(release: Location, name: str = APPLICATION, route: str = "/", **args: Any) -> dict[str, Any]:
    """Return an application that serves a release."""
    settings = {
        "release": release.uri,
        "model_name": "tiny",
        "num_cpus": 0.5,
        "max_replicas": 1,
        "ingress_num_cpus": 0.1,
        **args,
    }
    return {"name": name, "route_prefix": route, "import_path": "warren_serve.app:build", "args": settings}


def publish_random_model(
    root: Location,
    version: str,
    folder: Path,
    name: str = "tiny",
    lineage: dict[str, Any] | None = None,
    scores: dict[str, float] | None = None,
    **model: Any,
) -> Location:
    """Publish a model of random weights.

    Args:
        folder: An empty one, for its files.
        model: What `save_random_model` takes.
    """
    save_random_model(folder, **model)
    files = tuple(FileEntry(path.name, *digest_file(path)) for path in sorted(folder.iterdir()))
    stored = StoredFiles(Location.parse(str(folder)), files)
    return publish(root, name, version, stored, Lineage.from_json(lineage or {}), scores or {})
