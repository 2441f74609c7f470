"""What the benchmark runs on: an S3 server, a Ray cluster, a rolling endpoint with real engines, and an eye on it."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.rollout.releases import NAME, Releases
from warren.compat.environment_variables import ONE_COMPUTE_THREAD
from warren.errors import StorageError
from warren.rollout.state_machine import Phase, RolloutState
from warren.rollout.state_store import RolloutFiles
from warren.storage import Location
from warren.storage.s3 import ensure_bucket
from warren.storage.scratch import scratch_folder
from warren.testbed import RayHead, S3Server, free_port

APPLICATION = "front"
POLICY = {
    "steps": [0.1, 0.5, 1.0],
    "step_s": 3.0,
    "min_requests": 15,
    "max_step_s": 90.0,
    "drain_s": 1.5,
    "poll_s": 0.5,
    "start_timeout_s": 600.0,
    "total_timeout_s": 1800.0,
    "max_restarts": 20,
}
_BUCKET = "warren-rollouts"
_SOURCES = Path(__file__).resolve().parents[2]
_READY_TIMEOUT_S, _ROLLOUT_TIMEOUT_S, _LOOK_S = 300.0, 1800.0, 0.1


@dataclass(frozen=True)
class Moment:
    """A state of the rollout, and when it was seen first."""

    at_s: float
    state: RolloutState


class Watch:
    """Looks at the stored state all the time, from a thread of its own."""

    def __init__(self, files: RolloutFiles) -> None:
        self._files = files
        self.moments: list[Moment] = [Moment(time.monotonic(), RolloutState())]
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    @property
    def state(self) -> RolloutState:
        """The newest state."""
        return self.moments[-1].state

    def close(self) -> None:
        """Look no more."""
        self._closed.set()

    def seconds_by_phase(self, version: str, since_s: float) -> dict[str, float]:
        """Return how long each phase of a version's rollout took; the wait for its beginning is `waiting`."""
        spent: dict[str, float] = {}
        begin_s, phase = since_s, "waiting"
        for moment in self.moments:
            if moment.at_s < since_s:
                continue
            spent[phase] = spent.get(phase, 0.0) + moment.at_s - begin_s
            is_over = moment.state.phase == "idle" and phase != "waiting"
            begin_s = moment.at_s
            phase = moment.state.phase if moment.state.phase != "idle" or is_over else phase
            if is_over:
                break
        return {name: round(seconds, 1) for name, seconds in spent.items() if name != "idle"}

    def _run(self) -> None:
        while not self._closed.wait(_LOOK_S):
            with suppress(StorageError):
                state = self._files.read().state
                if state != self.state:
                    self.moments.append(Moment(time.monotonic(), state))


class World:
    """The endpoint and everything around it.

    Attributes:
        url: Of the endpoint.
        server: Storage.
        releases: What is published.
        watch: The rollout's state.
        cache: Where the machine's copies of releases are.
    """

    def __init__(self, server: S3Server, head: RayHead, port: int, releases: Releases, cache: Path) -> None:
        self.server, self.releases, self.cache = server, releases, cache
        self.url = f"http://127.0.0.1:{port}"
        self._head, self._port = head, port
        self._rest = f"{head.dashboard_url}/api/serve/applications/"
        self.watch = Watch(RolloutFiles(releases.root, NAME, APPLICATION))

    def deploy(self, import_path: str, args: Mapping[str, Any]) -> None:
        """Deploy the rolling endpoint, and wait until it serves its first release."""
        settings = {
            "num_cpus": 0.1,
            "ingress_num_cpus": 0.1,
            "num_slots": 8,
            "request_timeout_s": 60.0,
            "rollout": POLICY,
            "release": f"{self.releases.root}/releases/{NAME}",
        }
        application = {
            "name": APPLICATION,
            "route_prefix": "/",
            "import_path": import_path,
            "args": {**settings, **args},
        }
        options = {"host": "127.0.0.1", "port": self._port}
        config = {"proxy_location": "HeadOnly", "http_options": options, "applications": [application]}
        httpx.put(self._rest, json=config, timeout=60).raise_for_status()
        self.until(lambda: self.application(APPLICATION).get("status") == "RUNNING", "a running endpoint")

    def application(self, name: str) -> dict[str, Any]:
        """Return what Serve says of an application; nothing if there is none."""
        try:
            details: dict[str, Any] = httpx.get(self._rest, timeout=60).json()
        except httpx.HTTPError:
            return {}
        application: dict[str, Any] = details.get("applications", {}).get(name, {})
        return application

    def replicas(self, application: str, deployment: str) -> list[psutil.Process]:
        """Return the processes of a deployment's running replicas."""
        deployments = self.application(application).get("deployments", {})
        replicas = deployments.get(deployment, {}).get("replicas", [])
        return [psutil.Process(one["pid"]) for one in replicas if one["state"] == "RUNNING" and one["pid"]]

    def kill_controller(self) -> None:
        """Kill the rollout controller, as a machine that fails would."""
        self._kill(APPLICATION, "Controller")

    def restart_head(self) -> None:
        """Kill every process of the cluster, and start the head again on what it has stored."""
        print("  killing the head", flush=True)
        self._head.kill()
        self._head.start()

    def kill_engine(self, version: str) -> None:
        """Kill one engine replica of a version."""
        self._kill(f"{APPLICATION}-engine-{version}", "Engine")

    def until(self, condition: Callable[[], Any], what: str, timeout_s: float = _READY_TIMEOUT_S) -> None:
        """Wait for something.

        Raises:
            RuntimeError: It does not come.
        """
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"there was no sign of {what} in {timeout_s:.0f} s; {self.watch.state}")
            time.sleep(_LOOK_S)

    def until_phase(self, version: str, phase: Phase, step: int = 0) -> bool:
        """Wait until a version's rollout is in a phase, or over; return whether it is in it."""
        last: list[RolloutState] = []

        def came() -> bool:
            state = self.watch.state
            last[:] = [state]
            is_there = (state.phase, state.candidate) == (phase, version) and state.step >= step
            return is_there or self.is_over(version)

        self.until(came, f"the phase {phase} of {version}", _ROLLOUT_TIMEOUT_S)
        return last[0].phase == phase

    def is_over(self, version: str) -> bool:
        """Whether a version's rollout has ended."""
        state = self.watch.state
        return state.phase == "idle" and (state.stable == version or version in state.refused)

    def _kill(self, application: str, deployment: str) -> None:
        self.until(lambda: self.replicas(application, deployment), f"{application}'s {deployment}")
        victim = self.replicas(application, deployment)[0]
        print(f"  killing {deployment} of {application}", flush=True)
        with suppress(psutil.NoSuchProcess):
            victim.kill()


@contextmanager
def world(num_truths: int, is_persistent: bool, num_cpus: int = 8) -> Iterator[World]:
    """Start everything, and end it, also when this process is asked to end.

    Args:
        num_truths: See `Releases`.
        is_persistent: Whether a head that starts again knows its actors and applications.
        num_cpus: Logical CPUs of the cluster.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with scratch_folder("rolls") as scratch, S3Server(scratch / "s3") as server:
        os.environ.update(server.environment)
        ensure_bucket(_BUCKET)
        releases = Releases(Location.parse(f"s3://{_BUCKET}/storage"), scratch / "models", num_truths)
        cache = scratch / "cache"
        (scratch / "gcs").mkdir()
        environment = {
            **server.environment,
            **ONE_COMPUTE_THREAD,
            "PYTHONPATH": os.pathsep.join(str(_SOURCES / folder) for folder in ("platform", "serve", ".")),
            "WARREN_STORAGE": releases.root.uri,
            "WARREN_CACHE": str(cache),
            "RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT": "1",  # a release that does not load need not try three times
        }
        if is_persistent:
            environment |= {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(scratch / "gcs")}
        with RayHead(scratch / "ray", num_cpus, environment, object_store_bytes=400_000_000) as head:
            made = World(server, head, free_port(), releases, cache)
            try:
                yield made
            finally:
                made.watch.close()
