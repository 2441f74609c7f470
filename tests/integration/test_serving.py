"""The endpoint on a real Ray Serve cluster, asked by OpenAI's own client."""

import base64
import hashlib
import itertools
import os
import signal
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from cluster_fixtures import SECRET_MARK, Cluster
from secret_search import places_of_secrets
from serve_endpoint import Endpoint, chat, publish_random_model
from warren.inference.testing import png_bytes
from warren.storage import Location

NUM_SLOTS = 3
LONG = 200  # tokens
LIMIT = 4  # requests of a key in a minute
KEYS = [f"{SECRET_MARK}-{number}" for number in range(20_000)]

pytestmark = pytest.mark.timeout(300)


Publish = Callable[[str, int], Location]


@pytest.fixture(scope="module")
def publish_model(storage_root: Location, tmp_path_factory: pytest.TempPathFactory) -> Publish:
    def make(version: str, seed: int) -> Location:
        lineage = {"run": f"run-{version}", "checkpoint_step": 7, "dataset": "tiny/v1"}
        folder: Path = tmp_path_factory.mktemp(version) / "model"
        scores = {"exact_match": 0.5}
        return publish_random_model(storage_root, version, folder, lineage=lineage, scores=scores, seed=seed)

    return make


@pytest.fixture(scope="module")
def first_release(publish_model: Publish) -> Location:
    return publish_model("v1", 1)


Deploy = Callable[..., None]


@pytest.fixture(scope="module")
def deploy(endpoint: Endpoint, tmp_path_factory: pytest.TempPathFactory) -> Deploy:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("\n".join(hashlib.sha256(key.encode()).hexdigest() for key in KEYS))
    settings: dict[str, Any] = {
        "num_slots": NUM_SLOTS,
        "request_timeout_s": 30.0,
        "max_kv_bytes": 1 << 30,
        "api_keys_file": str(keys),
        "requests_per_minute": LIMIT,
        "ingress_min_replicas": 2,
        "ingress_max_replicas": 2,
    }

    def deploy(release: Location, **changes: Any) -> None:
        endpoint.deploy(chat(release, **settings | changes))

    return deploy


@pytest.fixture(scope="module")
def served(endpoint: Endpoint, deploy: Deploy, first_release: Location) -> Endpoint:
    deploy(first_release)
    endpoint.wait_for_status("RUNNING")
    endpoint.wait_for_replicas("Ingress", 2)
    return endpoint


_fresh = itertools.count()


def fresh_key() -> str:
    """Return a key that nobody has used, so that no limit is in the way."""
    return KEYS[next(_fresh)]


class FreshKeys(httpx.Auth):
    """Sends every request with a key of its own."""

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response]:
        request.headers["authorization"] = f"Bearer {fresh_key()}"
        yield request


def client_of(endpoint: Endpoint) -> openai.OpenAI:
    """Return a client that sends every request with a key of its own."""
    return openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key=fresh_key, max_retries=0, timeout=120)


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


def test_the_official_client_gets_the_same_answer_whole_and_streamed(served: Endpoint) -> None:
    client = client_of(served)
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


def test_company_does_not_change_an_answer(served: Endpoint) -> None:
    client = client_of(served)
    words = [f"what is there? {number}" for number in range(12)]
    alone = [_ask(client, one).choices[0].message.content for one in words]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda one: _ask(client, one).choices[0].message.content, words))
    assert together == alone
    assert len(set(alone)) > 1


def test_errors_are_typed_through_the_proxy(served: Endpoint) -> None:
    client = client_of(served)
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="other", messages=_messages())
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as hot:
        client.chat.completions.create(model="tiny", messages=_messages(), temperature=9)
    assert hot.value.param == "temperature"
    assert httpx.get(f"{served.url}/nothing", auth=FreshKeys()).json()["error"]["code"] == "not_found"
    assert httpx.get(f"{served.url}/readyz").json()["version"] == "v1"


def statuses(endpoint: Endpoint, key: str, number: int) -> list[int]:
    """Ask so many times with one key, several at a time."""
    ask = {"model": "tiny", "messages": _messages("what?"), "max_tokens": 1}
    headers = {"authorization": f"Bearer {key}"}

    def status(_: int) -> int:
        return httpx.post(f"{endpoint.url}/v1/chat/completions", json=ask, headers=headers, timeout=60).status_code

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(status, range(number)))


def test_a_limit_holds_over_all_ingress_replicas(served: Endpoint) -> None:
    """Two replicas that counted alone would let up to twice as many in."""
    seen = statuses(served, fresh_key(), 16)
    assert set(seen) == {200, 429}
    assert LIMIT <= seen.count(200) <= LIMIT + 1  # a place comes back every 15 seconds


@pytest.mark.slow
def test_a_release_rolls_in_under_load_with_its_limits_and_a_broken_one_does_not(
    served: Endpoint, deploy: Deploy, publish_model: Publish
) -> None:
    second = publish_model("v2", 2)
    versions: list[str] = []
    limited: list[int] = []
    stop = False

    def load() -> None:
        client = client_of(served)
        while not stop:
            answer = _ask(client, "what?", 8)
            assert answer.choices[0].finish_reason
            versions.append(answer.system_fingerprint)

    def exceed(key: str) -> None:
        while not stop:
            limited.extend(statuses(served, key, 1))
            time.sleep(0.1)

    accounts, key = served.pids("Accounts"), fresh_key()
    with ThreadPoolExecutor(4) as pool:
        workers = [*(pool.submit(load) for _ in range(3)), pool.submit(exceed, key)]
        try:
            deploy(second)
            served.wait_for_status("RUNNING")
            assert served.pids("Accounts") != accounts
            assert 429 in statuses(served, key, 2 * LIMIT), "the new release keeps the limit"
            deploy(_damaged(publish_model("v3", 3)))
            served.wait_for_status("DEPLOY_FAILED", "UNHEALTHY")
        finally:
            stop = True
        for worker in workers:
            worker.result()
    assert set(limited) <= {200, 429}, "no request fails for want of accounts"
    assert versions[0] == "v1"
    assert versions[-1] == "v2"
    switch = versions.index("v2")
    assert "v1" not in versions[switch + 20 :], "the old version kept answering after the new one took over"
    assert _ask(client_of(served), "what?").system_fingerprint == "v2"


def test_each_ingress_replica_counts_for_itself_while_there_are_no_accounts(served: Endpoint) -> None:
    (accounts,) = served.pids("Accounts")
    os.kill(accounts, signal.SIGKILL)
    seen = statuses(served, fresh_key(), 4 * LIMIT)  # two replicas that begin anew, and forgot who asked
    assert set(seen) == {200, 429}


@pytest.mark.slow
def test_engines_follow_the_load_from_zero_and_back_without_a_failed_request(
    served: Endpoint, deploy: Deploy, first_release: Location
) -> None:
    pace = {"upscale_delay_s": 0.5, "downscale_delay_s": 1.0, "downscale_to_zero_delay_s": 2.0, "load_window_s": 2.0}
    deploy(
        first_release,
        num_slots=1,
        num_cpus=0.25,
        min_replicas=0,
        max_replicas=2,
        request_timeout_s=115.0,
        **pace,
    )
    served.wait_for_status("RUNNING")
    served.wait_for_replicas("Engine", 0)
    num_users = 6
    answered = [0] * num_users

    def use(number: int) -> None:
        client = client_of(served)
        while number < num_users:
            assert _ask(client, "what?", LONG).choices[0].finish_reason
            answered[number] += 1

    with ThreadPoolExecutor(num_users) as pool:
        users = [pool.submit(use, number) for number in range(num_users)]
        try:
            served.wait_for_replicas("Engine", 2)
            num_users = 1  # one stays: it sees a replica go
            served.wait_for_replicas("Engine", 1)
        finally:
            num_users = 0
        for user in users:
            user.result()  # raises what any request raised
    assert min(answered) > 0
    served.wait_for_replicas("Engine", 0)


def test_no_secret_of_the_nodes_or_of_a_client_is_logged_or_shown(
    served: Endpoint, ray_cluster: Cluster, first_release: Location
) -> None:
    """After requests with good and bad keys, releases that rolled in, and one that failed."""
    bad = {"authorization": f"Bearer {SECRET_MARK}-bad"}
    shown = {
        f"{path} {headers}": httpx.get(f"{served.url}{path}", auth=auth, headers=headers, timeout=60).text
        for path in ("/metrics", "/v1/models", "/openapi.json", "/readyz", f"/made-up?key={SECRET_MARK}")
        for auth, headers in ((FreshKeys(), {}), (None, bad))
    }
    assert places_of_secrets(ray_cluster, first_release, shown=shown) == []
