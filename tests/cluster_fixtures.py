"""One real S3 server and one real Ray cluster for the whole session: starting them costs half a minute."""

import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from warren.storage import Location
from warren.storage.s3 import ensure_bucket
from warren.storage.scratch import scratch_folder
from warren.testbed import RayHead, S3Server, free_port

BUCKET = "tests"
SECRET_MARK = "5ecret-marked"
"""Part of every secret that the tests give to the cluster or to clients; `secret_search.py` looks for it."""
NODE_SECRETS = {
    name: f"{SECRET_MARK}-{name}"
    for name in ("HF_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "OPENAI_API_KEY")
}


@dataclass(frozen=True)
class Cluster:
    """The session's cluster, as tests see it."""

    head: RayHead
    serve_port: int

    @property
    def dashboard_url(self) -> str:
        return self.head.dashboard_url

    @property
    def address(self) -> str:
        return self.head.driver_address

    @property
    def env(self) -> dict[str, str]:
        """Variables for child processes that use `ray job submit`."""
        return self.head.environment

    @property
    def driver_env(self) -> dict[str, str]:
        """Variables for child processes that are drivers themselves."""
        return {**self.head.environment, "RAY_ADDRESS": self.address}


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    with scratch_folder("s3") as folder, S3Server(folder) as server:
        os.environ.update(server.environment)
        ensure_bucket(BUCKET)
        yield server


@pytest.fixture(scope="session")
def storage_root(s3_server: S3Server) -> Location:
    """A folder in the session's bucket."""
    return Location.parse(f"s3://{BUCKET}/session-{uuid.uuid4().hex[:6]}")


@pytest.fixture(params=["s3", "file"])
def root(request: pytest.FixtureRequest, s3_server: S3Server, tmp_path: Path) -> Location:
    """A storage root of the test's own, once in S3 and once on disk."""
    if request.param == "s3":
        return Location.parse(f"s3://{BUCKET}/{uuid.uuid4().hex[:8]}")
    return Location.parse(str(tmp_path / "store"))


@pytest.fixture
def s3_root(s3_server: S3Server) -> Location:
    """A storage root of the test's own, in S3."""
    return Location.parse(f"s3://{BUCKET}/{uuid.uuid4().hex[:8]}")


@pytest.fixture(scope="session")
def ray_cluster(s3_server: S3Server, storage_root: Location, repository: Path) -> Iterator[Cluster]:
    """The session's Ray cluster; this process is connected to it as a driver."""
    import ray

    from warren.cluster.session import quieten

    port = free_port()
    sources = os.pathsep.join(str(repository / name) for name in ("platform", "serve"))
    environment = {
        **s3_server.environment,
        **NODE_SECRETS,
        "WARREN_STORAGE": storage_root.uri,
        "WARREN_SERVE_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT": "1",  # a bad release need not fail three times with pauses
        "PYTHONPATH": sources,  # as in the image, where Warren is installed on every node
    }
    with (
        scratch_folder("ray") as folder,
        RayHead(folder, num_cpus=6, environment=environment, object_store_bytes=600_000_000) as head,
    ):
        cluster = Cluster(head, port)
        os.environ.update({"WARREN_SERVE_PORT": str(port), "RAY_ADDRESS": cluster.address})
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        quieten()
        try:
            yield cluster
        finally:
            ray.shutdown()
            os.environ.pop("RAY_ADDRESS")


@pytest.fixture
def idle_cluster(ray_cluster: Cluster) -> Cluster:
    """The session's cluster with every CPU free: what earlier tests left serving is taken down."""
    import ray
    from ray import serve

    serve.shutdown()
    total, patience = ray.cluster_resources()["CPU"], time.monotonic() + 60
    while ray.available_resources().get("CPU", 0) < total:
        assert time.monotonic() < patience, f"an earlier test still holds CPUs: {ray.available_resources()}"
        time.sleep(0.5)
    return ray_cluster
