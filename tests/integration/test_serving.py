"""The endpoint on a real Ray Serve cluster, asked by OpenAI's own client."""

import base64
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from serve_endpoint import Endpoint, chat, publish_random_model
from warren.inference.testing import png_bytes
from warren.storage import Location

NUM_SLOTS = 3
LONG = 200  # tokens

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


def deploy(endpoint: Endpoint, release: Location, **changes: Any) -> None:
    settings = {"num_slots": NUM_SLOTS, "request_timeout_s": 30.0, "max_kv_bytes": 1 << 30}
    endpoint.deploy(chat(release, **{**settings, **changes}))


@pytest.fixture(scope="module")
def served(endpoint: Endpoint, first_release: Location) -> Endpoint:
    deploy(endpoint, first_release)
    endpoint.wait_for_status("RUNNING")
    return endpoint


def client_of(endpoint: Endpoint) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key="none", max_retries=0, timeout=120)


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
    assert httpx.get(f"{served.url}/nothing").json()["error"]["code"] == "not_found"
    assert httpx.get(f"{served.url}/readyz").json()["version"] == "v1"


@pytest.mark.slow
def test_a_release_rolls_in_under_load_and_a_broken_one_does_not(served: Endpoint, publish_model: Publish) -> None:
    second = publish_model("v2", 2)
    versions: list[str] = []
    stop = False

    def load() -> None:
        client = client_of(served)
        while not stop:
            answer = _ask(client, "what?", 8)
            assert answer.choices[0].finish_reason
            versions.append(answer.system_fingerprint)

    with ThreadPoolExecutor(3) as pool:
        workers = [pool.submit(load) for _ in range(3)]
        try:
            deploy(served, second)
            served.wait_for_status("RUNNING")
            deploy(served, _damaged(publish_model("v3", 3)))
            served.wait_for_status("DEPLOY_FAILED", "UNHEALTHY")
        finally:
            stop = True
        for worker in workers:
            worker.result()
    assert versions[0] == "v1"
    assert versions[-1] == "v2"
    switch = versions.index("v2")
    assert "v1" not in versions[switch + 20 :], "the old version kept answering after the new one took over"
    assert _ask(client_of(served), "what?").system_fingerprint == "v2"


def test_a_limit_holds_over_all_ingress_replicas_while_a_release_rolls_in_and_without_its_accounts(
    served: Endpoint, storage_root: Location, publish_model: Publish
) -> None:
    """Two replicas that counted alone would let up to twice as many in."""
    limit = 4
    many = {
        "requests_per_minute": limit,
        "ingress_min_replicas": 2,
        "ingress_max_replicas": 2,
        "ingress_num_cpus": 0.1,
    }
    deploy(served, storage_root / "releases" / "tiny" / "v2", **many)  # which serves: its engine stays
    served.wait_for_status("RUNNING")
    served.wait_for_replicas("Ingress", 2)
    ask = {"model": "tiny", "messages": _messages("what?"), "max_tokens": 1}

    def status(_: int) -> int:
        return httpx.post(f"{served.url}/v1/chat/completions", json=ask, timeout=60).status_code

    with ThreadPoolExecutor(4) as pool:
        statuses = list(pool.map(status, range(16)))
    assert set(statuses) == {200, 429}
    assert limit <= statuses.count(200) <= limit + 1  # a place comes back every 15 seconds

    before, rolling = served.pids("Accounts"), True

    def statuses_meanwhile() -> list[int]:
        found = []
        while rolling:
            found.append(status(0))
            time.sleep(0.1)
        return found

    with ThreadPoolExecutor(1) as pool:
        meanwhile = pool.submit(statuses_meanwhile)
        try:
            deploy(served, publish_model("limited", 4), **many)
            served.wait_for_status("RUNNING")
        finally:
            rolling = False
        statuses = meanwhile.result() + [status(0) for _ in range(2 * limit)]
    assert served.pids("Accounts") != before
    assert set(statuses) <= {200, 429}, "no request fails for want of accounts"
    assert 429 in statuses[-2 * limit :], "the new release keeps the limit"

    (accounts,) = served.pids("Accounts")
    os.kill(accounts, signal.SIGKILL)
    meanwhile_alone = [status(0) for _ in range(4 * limit)]  # two replicas that begin anew, and forgot who asked
    assert set(meanwhile_alone) == {200, 429}, "each replica counts for itself meanwhile"


@pytest.mark.slow
def test_engines_follow_the_load_from_zero_and_back_without_a_failed_request(
    served: Endpoint, first_release: Location
) -> None:
    pace = {"upscale_delay_s": 0.5, "downscale_delay_s": 1.0, "downscale_to_zero_delay_s": 2.0, "load_window_s": 2.0}
    deploy(
        served,
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
