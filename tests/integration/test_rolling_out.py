"""Releases roll into an endpoint under load: good ones through, bad ones back, and no accepted request fails."""

import json
import os
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster_fixtures import Cluster
from serve_endpoint import Endpoint, publish_random_model, wait_for
from warren.cluster.serve import endpoint_config
from warren.cluster.serve.endpoint import Endpoint as RunningEndpoint
from warren.cluster.serve.endpoint_config import Instance
from warren.release import Lineage, move_alias, publish, read_alias, read_release
from warren.rollout.state_store import RolloutFiles, RolloutRecord
from warren.storage import Location, StoredFiles

pytestmark = [pytest.mark.timeout(400), pytest.mark.slow]

NAME, APPLICATION = "rolling", "front"
POLICY = {"steps": [0.3, 1.0], "step_s": 1.5, "min_requests": 6, "max_step_s": 60.0, "drain_s": 1.0, "poll_s": 0.5}
EVERY_S = 0.15


class Load:
    """Streams at a constant pace, whatever becomes of the earlier ones."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/v1/chat/completions"
        self._client = httpx.Client(timeout=60, limits=httpx.Limits(max_connections=64))
        self._pool = ThreadPoolExecutor(32)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.answers: Counter[str] = Counter()
        self.failures: list[str] = []

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        self._pool.shutdown(wait=True)
        self._client.close()

    def _run(self) -> None:
        while not self._stopped.wait(EVERY_S):
            self._pool.submit(self._ask)

    def _ask(self) -> None:
        body = {"model": NAME, "stream": True, "messages": [{"role": "user", "content": "what is there?"}]}
        headers = {"x-session-id": uuid.uuid4().hex}
        try:
            with self._client.stream("POST", self._url, json=body, headers=headers) as answer:
                text = "".join(answer.iter_text())
            lines = [line.removeprefix("data: ") for line in text.splitlines() if line]
            versions = {json.loads(line)["system_fingerprint"] for line in lines[1:-1]}
            if answer.status_code != 200 or lines[-1] != "[DONE]" or len(versions) != 1:
                self.failures.append(f"{answer.status_code} {text[-500:]}")
            else:
                self.answers[versions.pop()] += 1
        except Exception as error:
            self.failures.append(repr(error))


@pytest.fixture
def root(storage_root: Location) -> Location:
    return storage_root / "rolling"


@pytest.fixture
def files(root: Location) -> RolloutFiles:
    return RolloutFiles(root, NAME, APPLICATION)


@pytest.fixture
def application(root: Location, repository: Path) -> dict[str, Any]:
    """The endpoint with stand-in engines, as Serve's configuration has it."""
    path = os.pathsep.join(str(repository / folder) for folder in ("platform", "serve", "tests"))
    settings = {"num_cpus": 0.1, "ingress_num_cpus": 0.1, "request_timeout_s": 20.0, "tokens_per_minute": 10**9}
    return {
        "name": APPLICATION,
        "route_prefix": "/",
        "import_path": "standin_engine:front",
        "runtime_env": {"env_vars": {"PYTHONPATH": path}},  # the engines need it, too
        "args": {"release": f"{root}/releases/{NAME}", "rollout": POLICY, **settings},
    }


@pytest.fixture
def front(endpoint: Endpoint, root: Location, application: dict[str, Any], tmp_path: Path) -> Iterator[Endpoint]:
    """The endpoint; its first release was published and is nothing but a candidate."""
    publish_random_model(root, "v1", tmp_path / "model", name=NAME)
    roll(root, "v1")
    endpoint.deploy(application)
    endpoint.wait_for_status("RUNNING", name=APPLICATION)
    yield endpoint
    endpoint.deploy()


def roll(root: Location, version: str) -> None:
    """Publish a version, of the same files, and make it the candidate."""
    folder = root / "releases" / NAME
    if version != "v1":
        first = folder / "v1"
        publish(root, NAME, version, StoredFiles(first, read_release(first).files), Lineage(), {})
    move_alias(root, NAME, "candidate", version, read_alias(root, NAME, "candidate"))


def settled(files: RolloutFiles, stable: str, refused: str | None = None) -> RolloutRecord | None:
    record = files.read()
    state = record.state
    is_there = state.phase == "idle" and state.stable == stable and (refused is None or refused in state.refused)
    return record if is_there else None


def pid_of(front: Endpoint, deployment: str) -> int:
    (pid,) = front.pids(deployment, name=APPLICATION)
    return pid


def test_releases_roll_in_under_load_and_bad_ones_are_undone(
    front: Endpoint, root: Location, files: RolloutFiles, ray_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_for(lambda: settled(files, "v1"))
    monkeypatch.setattr(endpoint_config, "FRONT_IMPORT_PATH", "standin_engine:front")
    running = Instance.of(RunningEndpoint(ray_cluster.dashboard_url).details())
    assert running is not None
    assert running.rolling_endpoint(NAME) == APPLICATION, "so that jobs/release.py waits instead of deploying"
    assert read_alias(root, NAME, "stable") == "v1", "the first one is taken at once"
    kept = [pid_of(front, deployment) for deployment in ("Ingress", "Accounts")]
    with Load(front.url) as load:
        roll(root, "v2")
        wait_for(lambda: files.read().state.phase == "shifting")
        controller = pid_of(front, "Controller")
        os.kill(controller, signal.SIGKILL)
        record = wait_for(lambda: settled(files, "v2"))
        assert record.epoch == 2, "another controller took over in the middle"
        assert read_alias(root, NAME, "stable") == "v2"

        for bad, reason in (
            ("broken", "does not load: its weights are not weights"),
            ("garbage", "4 of 4 answers are empty or repeat themselves (0 of the serving release's)"),
            ("looping", "answers repeated themselves"),
        ):
            roll(root, bad)
            record = wait_for(partial(settled, files, "v2", bad))
            assert reason in record.state.refused[bad]
            assert front.application(f"{APPLICATION}-engine-{bad}") == {}
        time.sleep(2 * POLICY["poll_s"])  # type: ignore[operator]
        assert load.answers["v2"] > 0
        shown: dict[str, Any] = httpx.get(f"{front.url}/rollout", timeout=60).json()
        assert (shown["phase"], shown["stable"], shown["weights"]) == ("idle", "v2", {"v2": 1.0})
    assert load.failures == []
    assert load.answers.keys() == {"v1", "v2", "looping"}
    assert load.answers["looping"] < 0.2 * sum(load.answers.values())
    assert [pid_of(front, deployment) for deployment in ("Ingress", "Accounts")] == kept, "streams and limits stay"
    phases = [event["phase"] for event in files.read().events if event["version"] == "looping"]
    assert phases == ["verifying", "starting", "shifting", "rolling_back", "idle"]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_engines_at_zero_wake_up_while_a_release_is_pending(
    front: Endpoint, application: dict[str, Any], root: Location, files: RolloutFiles
) -> None:
    wait_for(lambda: settled(files, "v1"))
    pace = {"upscale_delay_s": 0.5, "downscale_delay_s": 1.0, "downscale_to_zero_delay_s": 2.0, "load_window_s": 2.0}
    to_zero = {"min_replicas": 0, "request_timeout_s": 110.0, "rollout": {**POLICY, "max_step_s": 3.0}, **pace}
    front.deploy({**application, "args": {**application["args"], **to_zero}})
    front.wait_for_status("RUNNING", name=APPLICATION)
    time.sleep(10)
    assert num_engines(front, "v1") == 1, "settings of engines hold from the next release on"

    roll(root, "v2")
    wait_for(lambda: settled(files, "v2"))
    wait_for(lambda: num_engines(front, "v2") == 0)
    files.send("pause", by="a person", reason="to look at it")
    wait_for(lambda: files.read().state.is_paused)
    roll(root, "v3")
    assert ask(front) == "v2", "it wakes up for a request while the candidate waits"
    wait_for(lambda: num_engines(front, "v2") == 0)
    assert files.read().state.phase == "idle"

    files.send("resume", by="a person")
    answered = {ask(front)}
    while not settled(files, "v3"):
        answered.add(ask(front))
        time.sleep(1)
    assert answered <= {"v2", "v3"}
    wait_for(lambda: num_engines(front, "v3") == 0)
    assert ask(front) == "v3"


def num_engines(front: Endpoint, version: str) -> int:
    return len(front.pids("Engine", name=f"{APPLICATION}-engine-{version}"))


def ask(front: Endpoint) -> str:
    """Return the version that answers a question."""
    body = {"model": NAME, "messages": [{"role": "user", "content": "what is there?"}]}
    answer = httpx.post(f"{front.url}/v1/chat/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    version: str = answer.json()["system_fingerprint"]
    return version
