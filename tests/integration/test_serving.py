"""The endpoint on a real Ray Serve cluster, asked by OpenAI's own client."""

import base64
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from warren.inference.testing import png_bytes, save_random_model
from warren.release import publish
from warren.storage import FileEntry, Location, digest_file

APPLICATION = "chat"
NUM_SLOTS = 3
LONG = 200  # tokens

pytestmark = pytest.mark.timeout(300)


class Endpoint:
    """Deploys releases declaratively, as `serve deploy` does, and makes clients."""

    def __init__(self, cluster: Any) -> None:
        self._applications = f"{cluster.dashboard_url}/api/serve/applications/"
        self._port = cluster.serve_port
        self.url = f"http://127.0.0.1:{cluster.serve_port}"

    def deploy(self, release: Location, **changes: Any) -> None:
        args = {
            "release": str(release),
            "model_name": "tiny",
            "num_slots": NUM_SLOTS,
            "num_cpus": 0.5,
            "request_timeout_s": 30.0,
            "max_kv_bytes": 1 << 30,
            **changes,
        }
        application = {
            "name": APPLICATION,
            "route_prefix": "/",
            "import_path": "warren_serve.app:build",
            "args": args,
        }
        config = {"http_options": {"host": "127.0.0.1", "port": self._port}, "applications": [application]}
        httpx.put(self._applications, json=config, timeout=60).raise_for_status()

    def pids_of(self, deployment: str) -> list[int]:
        applications = httpx.get(self._applications, timeout=60).json()["applications"]
        replicas = applications[APPLICATION]["deployments"][deployment]["replicas"]
        return [replica["pid"] for replica in replicas if replica["state"] == "RUNNING"]

    def wait_for_replicas(self, deployment: str, wanted: int) -> None:
        deadline = time.monotonic() + 120
        while (found := len(self.pids_of(deployment))) != wanted:
            assert time.monotonic() < deadline, f"{found} of {deployment}, not {wanted}"
            time.sleep(0.3)

    def wait_for(self, *statuses: str, timeout_s: float = 120.0) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while True:
            applications = httpx.get(self._applications, timeout=60).json()["applications"]
            status: dict[str, Any] = applications.get(APPLICATION, {})
            if status.get("status") in statuses:
                return status
            assert time.monotonic() < deadline, f"not {statuses} but {status}"
            time.sleep(0.3)

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def publish_model(storage_root: Location, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Location]:
    def make(version: str, seed: int) -> Location:
        folder: Path = tmp_path_factory.mktemp(version)
        save_random_model(folder, seed=seed)
        files = tuple(FileEntry(path.name, *digest_file(path)) for path in sorted(folder.iterdir()))
        source = Location.parse(str(folder))
        lineage = {"run": f"run-{version}", "checkpoint_step": 7, "dataset": "tiny/v1"}
        return publish(storage_root, "tiny", version, source, files, lineage, {"exact_match": 0.5})

    return make


@pytest.fixture(scope="module")
def first_release(publish_model: Callable[[str, int], Location]) -> Location:
    return publish_model("v1", 1)


@pytest.fixture(scope="module")
def endpoint(ray_cluster: Any, first_release: Location) -> Iterator[Endpoint]:
    endpoint = Endpoint(ray_cluster)
    endpoint.deploy(first_release)
    endpoint.wait_for("RUNNING")
    yield endpoint
    httpx.delete(f"{ray_cluster.dashboard_url}/api/serve/applications/", timeout=60)


def _messages(words: str = "what is there?", color: tuple[int, int, int] = (10, 200, 30)) -> Any:
    url = "data:image/png;base64," + base64.b64encode(png_bytes(color)).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": words}]
    return [{"role": "user", "content": parts}]


def _ask(client: openai.OpenAI, words: str, max_tokens: int = 16) -> Any:
    return client.chat.completions.create(model="tiny", messages=_messages(words), max_tokens=max_tokens, temperature=0)


def _damaged(release: Location) -> Location:
    """Change a release behind its manifest's back."""
    path = "/".join((release.key, "model.safetensors"))
    with release.filesystem.open_output_stream(path) as file:
        file.write(b"not what was published")
    return release


def test_the_official_client_gets_the_same_answer_whole_and_streamed(endpoint: Endpoint) -> None:
    client = endpoint.client()
    (model,) = client.models.list().data
    assert model.id == "tiny"
    extra = model.model_extra or {}
    assert extra["lineage"]["run"] == "run-v1"
    assert extra["scores"] == {"exact_match": 0.5}

    whole = _ask(client, "a blue circle?")
    assert whole.usage.completion_tokens <= 16
    assert whole.system_fingerprint == "v1"
    stream = client.chat.completions.create(
        model="tiny",
        messages=_messages("a blue circle?"),
        max_tokens=16,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        == whole.choices[0].message.content
    )
    assert chunks[-1].usage == whole.usage


def test_company_does_not_change_an_answer(endpoint: Endpoint) -> None:
    client = endpoint.client()
    words = [f"what is there? {number}" for number in range(12)]
    alone = [_ask(client, one).choices[0].message.content for one in words]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda one: _ask(client, one).choices[0].message.content, words))
    assert together == alone
    assert len(set(alone)) > 1


def test_errors_are_typed_through_the_proxy(endpoint: Endpoint) -> None:
    client = endpoint.client()
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="other", messages=_messages())
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as hot:
        client.chat.completions.create(model="tiny", messages=_messages(), temperature=9)
    assert hot.value.param == "temperature"
    assert httpx.get(f"{endpoint.url}/nothing").json()["error"]["code"] == "not_found"
    assert httpx.get(f"{endpoint.url}/readyz").json()["version"] == "v1"


def test_clients_that_leave_free_their_slots(endpoint: Endpoint) -> None:
    client = endpoint.client()
    for _ in range(4 * NUM_SLOTS):
        stream = client.chat.completions.create(model="tiny", messages=_messages(), max_tokens=LONG, stream=True)
        next(iter(stream))
        stream.close()
    start = time.monotonic()
    assert _ask(client, "still there?", 4).choices[0].finish_reason
    # All abandoned answers together would take far longer than one of them.
    assert time.monotonic() - start < 5


@pytest.mark.slow
def test_a_release_rolls_in_under_load_and_a_broken_one_does_not(
    endpoint: Endpoint, publish_model: Callable[[str, int], Location], storage_root: Location
) -> None:
    second = publish_model("v2", 2)
    versions: list[str] = []
    stop = False

    def load() -> None:
        client = endpoint.client()
        while not stop:
            answer = _ask(client, "what?", 8)
            assert answer.choices[0].finish_reason
            versions.append(answer.system_fingerprint)

    with ThreadPoolExecutor(3) as pool:
        workers = [pool.submit(load) for _ in range(3)]
        try:
            endpoint.deploy(second)
            time.sleep(1)
            endpoint.wait_for("RUNNING")
            endpoint.deploy(storage_root / "releases" / "tiny" / "missing")
            missing = endpoint.wait_for("DEPLOY_FAILED")
            endpoint.deploy(_damaged(publish_model("v3", 3)))
            time.sleep(1)
            endpoint.wait_for("DEPLOY_FAILED", "UNHEALTHY")
        finally:
            stop = True
        for worker in workers:
            worker.result()
    assert "missing" in str(missing)
    assert versions[0] == "v1"
    assert versions[-1] == "v2"
    switch = versions.index("v2")
    assert "v1" not in versions[switch + 20 :], "the old version kept answering after the new one took over"
    assert _ask(endpoint.client(), "what?").system_fingerprint == "v2"
    endpoint.deploy(second)
    endpoint.wait_for("RUNNING")


def test_a_limit_holds_over_all_ingress_replicas_while_a_release_rolls_in_and_without_its_accounts(
    endpoint: Endpoint, first_release: Location, publish_model: Callable[[str, int], Location]
) -> None:
    """Two replicas that counted alone would let up to twice as many in."""
    limit = 4
    many = {
        "requests_per_minute": limit,
        "ingress_min_replicas": 2,
        "ingress_max_replicas": 2,
        "ingress_num_cpus": 0.1,
    }
    endpoint.deploy(first_release, **many)
    time.sleep(1)
    endpoint.wait_for("RUNNING")
    endpoint.wait_for_replicas("Ingress", 2)
    ask = {"model": "tiny", "messages": _messages("what?"), "max_tokens": 1}

    def status(_: int) -> int:
        return httpx.post(f"{endpoint.url}/v1/chat/completions", json=ask, timeout=60).status_code

    with ThreadPoolExecutor(4) as pool:
        statuses = list(pool.map(status, range(16)))
    assert set(statuses) == {200, 429}
    assert limit <= statuses.count(200) <= limit + 1  # a place comes back every 15 seconds

    before, rolling = endpoint.pids_of("Accounts"), True

    def statuses_meanwhile() -> list[int]:
        found = []
        while rolling:
            found.append(status(0))
            time.sleep(0.1)
        return found

    with ThreadPoolExecutor(1) as pool:
        meanwhile = pool.submit(statuses_meanwhile)
        try:
            endpoint.deploy(publish_model("limited", 4), **many)
            time.sleep(1)
            endpoint.wait_for("RUNNING")
        finally:
            rolling = False
        statuses = meanwhile.result() + [status(0) for _ in range(2 * limit)]
    assert endpoint.pids_of("Accounts") != before
    assert set(statuses) <= {200, 429}, "no request fails for want of accounts"
    assert 429 in statuses[-2 * limit :], "the new release keeps the limit"

    (accounts,) = endpoint.pids_of("Accounts")
    os.kill(accounts, signal.SIGKILL)
    assert status(0) in (200, 429), "each replica counts for itself meanwhile"


@pytest.mark.slow
def test_engines_follow_the_load_from_zero_and_back_without_a_failed_request(
    endpoint: Endpoint, first_release: Location
) -> None:
    pace = {"upscale_delay_s": 0.5, "downscale_delay_s": 1.0, "downscale_to_zero_delay_s": 2.0, "load_window_s": 2.0}
    endpoint.deploy(
        first_release, num_slots=1, num_cpus=0.25, min_replicas=0, max_replicas=2, request_timeout_s=115.0, **pace
    )
    time.sleep(1)
    endpoint.wait_for("RUNNING")
    endpoint.wait_for_replicas("Engine", 0)
    num_users = 6
    answered = [0] * num_users

    def use(number: int) -> None:
        client = endpoint.client()
        while number < num_users:
            assert _ask(client, "what?", LONG).choices[0].finish_reason
            answered[number] += 1

    with ThreadPoolExecutor(num_users) as pool:
        users = [pool.submit(use, number) for number in range(num_users)]
        try:
            endpoint.wait_for_replicas("Engine", 2)
            num_users = 1  # one stays: it sees a replica go
            endpoint.wait_for_replicas("Engine", 1)
        finally:
            num_users = 0
        for user in users:
            user.result()  # raises what any request raised
    assert min(answered) > 0
    endpoint.wait_for_replicas("Engine", 0)
    assert _ask(endpoint.client(), "again?", 4).choices[0].finish_reason
