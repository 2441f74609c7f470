"""The endpoint behind Ray Serve's own proxy: raw sockets that misbehave, and a replica that is killed."""

import json
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
import ray

from serve_endpoint import Endpoint, chat, publish_random_model, wait_for
from warren.storage import Location

pytestmark = pytest.mark.timeout(300)

ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "what is there?"}], "temperature": 0}
BODY = json.dumps(ASK | {"max_tokens": 2}).encode()
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
BODY_TIMEOUT_S = 1.0


@pytest.fixture(scope="module")
def url(endpoint: Endpoint, storage_root: Location, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An endpoint whose engine generates long enough to be killed in between."""
    folder: Path = tmp_path_factory.mktemp("long") / "model"
    release = publish_random_model(storage_root, "long", folder, max_position_embeddings=4096)
    settings: dict[str, Any] = {
        "num_slots": 2,
        "max_new_tokens": 4000,
        "body_timeout_s": BODY_TIMEOUT_S,
        "web_page": True,
    }
    endpoint.deploy(chat(release, **settings))
    endpoint.wait_for_status("RUNNING")
    return endpoint.url


def talk(url: str, *pieces: bytes) -> bytes:
    """Send bytes as they are; returns what comes until the server closes or says nothing for a while."""
    host, port = url.removeprefix("http://").split(":")
    told = b""
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):  # it may refuse before all of it is sent
            for piece in pieces:
                connection.sendall(piece)
        try:
            while part := connection.recv(65536):
                told += part
                if b"\r\n\r\n" in told and b"connection: close" not in told.lower():
                    connection.settimeout(1)
        except (TimeoutError, ConnectionResetError):
            pass
    return told


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def length(size: int) -> bytes:
    return f"content-length: {size}\r\n".encode()


CHUNKED = b"transfer-encoding: chunked\r\n"


def test_an_upgrade_that_costs_the_body_is_explained(url: str) -> None:
    """Java's client and `curl --http2` offer h2c; the proxy's parser drops what follows, so it cannot be answered."""
    upgrade = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"
    answer = talk(url, HEAD + upgrade + length(len(BODY)) + b"\r\n" + BODY)
    assert status_of(answer) == 400
    assert b"upgrade_not_supported" in answer
    assert b"HTTP_1_1" in answer
    assert status_of(talk(url, b"GET /healthz HTTP/1.1\r\nhost: a\r\n" + upgrade + b"\r\n")) == 200


@pytest.mark.parametrize("named", [b"", b"x-request-id: mine\r\n", b'x-request-id: mine" ' + b"x" * 300 + b"\r\n"])
def test_an_answer_has_one_request_id_and_redirects_nowhere(url: str, named: bytes) -> None:
    answer = talk(url, HEAD + named + length(len(BODY)) + b"\r\n" + BODY)
    assert status_of(answer) == 200
    head = answer.split(b"\r\n\r\n")[0].lower()
    assert head.count(b"x-request-id:") == 1
    assert not named or b"x-request-id: mine" in head
    forged = b"GET /v1/models/tiny/ HTTP/1.1\r\nhost: evil.example\r\nx-forwarded-proto: https\r\n\r\n"
    answer = talk(url, forged)
    assert status_of(answer) == 200
    assert b"evil.example" not in answer


def test_head_and_a_slash_too_many_are_answered_and_a_refusal_counts_under_its_route(url: str) -> None:
    for path in ("/healthz", "/readyz/", "/metrics"):
        answer = httpx.head(f"{url}{path}", timeout=60)
        assert (answer.status_code, answer.content) == (200, b"")
    assert httpx.get(f"{url}/v1/models/").json() == httpx.get(f"{url}/v1/models").json()
    long = {"k" * 1_000_000: 1}
    answer = httpx.post(f"{url}/v1/completions/", json={"model": "tiny", "prompt": "a"} | long, timeout=60)
    assert (answer.status_code, len(answer.content) < 1000) == (400, True)
    counted = 'route="/v1/completions",status="400"'
    wait_for(lambda: counted in httpx.get(f"{url}/metrics", timeout=60).text, 60)


def test_many_readers_of_the_metrics_do_not_slow_each_other(url: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        texts = list(pool.map(lambda _: httpx.get(f"{url}/metrics", timeout=60).text, range(12)))
    assert len(set(texts)) <= 3, "readers at the same time share what was gathered"
    wait_for(lambda: 'application="chat"' in httpx.get(f"{url}/metrics", timeout=60).text)


@pytest.mark.parametrize(
    "pieces",
    [
        [HEAD, length(5), CHUNKED, b"\r\n", b"0\r\n\r\nGET /metrics HTTP/1.1\r\nhost: a\r\n\r\n"],
        [HEAD, length(3), length(len(BODY)), b"\r\n", BODY],
        [HEAD, b"content-length: -1\r\n\r\n"],
        [HEAD, b"content-length: 1e3\r\n\r\n"],
        [HEAD, b"transfer-encoding: chunked, identity\r\n\r\n", b"0\r\n\r\n"],
        [HEAD, CHUNKED, b"\r\n", b"zz\r\n{}\r\n0\r\n\r\n"],
        [HEAD, b"x: " + b"a" * 200_000 + b"\r\n\r\n"],
        [b"POST /v1/chat/completions HTTP/9.9\r\n\r\n"],
        [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 9],
        [HEAD, b" folded\x00: x\r\n\r\n"],
    ],
    ids=["both lengths", "two lengths", "negative", "no number", "odd coding", "bad chunk", "long header", "version",
         "tls", "nul"],
)  # fmt: skip
def test_a_request_that_is_two_is_never_taken_for_both(url: str, pieces: list[bytes]) -> None:
    answer = talk(url, *pieces)
    assert answer.count(b"HTTP/1.1 ") <= 1, "one request, one answer"
    assert not answer or 400 <= status_of(answer) < 500, answer[:200]
    assert status_of(talk(url, HEAD, length(len(BODY)), b"\r\n", BODY)) == 200


def test_slow_clients_hold_a_connection_and_nothing_else(url: str) -> None:
    """Heads and bodies that trickle: a body is given up after its time, a head costs one socket, and others go on."""
    host, port = url.removeprefix("http://").split(":")
    slow = [socket.create_connection((host, int(port)), timeout=20) for _ in range(40)]
    try:
        for number, connection in enumerate(slow):
            connection.sendall(HEAD if number % 2 else HEAD + length(1000) + b"\r\n" + b"{")
        for _ in range(3):
            for connection in slow[1::2]:
                connection.sendall(b"x-more: 1\r\n")
            answer = httpx.post(f"{url}/v1/chat/completions", json=ASK | {"max_tokens": 2}, timeout=30)
            assert answer.status_code == 200
        for connection in slow[::2]:
            told = b""
            while b"request_timeout" not in told and (part := connection.recv(65536)):  # head and body may come apart
                told += part
            assert status_of(told) == 408
            assert b"request_timeout" in told
    finally:
        for connection in slow:
            connection.close()
    assert httpx.get(f"{url}/readyz").status_code == 200


def test_clients_that_leave_free_their_slots_and_the_metrics_of_ingress_and_engine_tell(url: str) -> None:
    """A slot that was kept would first generate the thousands of tokens that its client asked for."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)
    for _ in range(6):
        stream = client.chat.completions.create(**ASK, max_tokens=4000, stream=True)
        next(iter(stream))
        stream.close()
    assert client.chat.completions.create(**ASK, max_tokens=2).choices[0].finish_reason

    def metrics() -> dict[str, float] | None:
        """Return the engine's counts once they and the ingress's are there: they come some seconds late."""
        text = httpx.get(f"{url}/metrics", timeout=30).text
        counts = {name: float(value) for name, value in re.findall(r"^warren_engine_(\w+)\{.*\} (\S+)$", text, re.M)}
        complete = counts.get("cancelled_total", 0) >= 6 and 'route="/v1/chat/completions",status="200"' in text
        return counts if complete else None

    counts = wait_for(metrics, 60)
    assert counts["slots"] == 2
    assert counts["generated_tokens_total"] < 4000


@pytest.mark.parametrize("killed", ["replica", "engine"])
def test_the_answers_of_a_killed_replica_are_finished_by_the_next_one(
    url: str, endpoint: Endpoint, killed: str
) -> None:
    """The engine is a process of its own: neither lives without the other."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
    (pid,) = endpoint.pids("Engine")
    replica = psutil.Process(pid)
    children = replica.children()  # the engine's, and those that decode images
    (engine,) = [
        child for child in children if "warren.inference.transformers_engine.worker" in " ".join(child.cmdline())
    ]
    stream = client.chat.completions.create(**ASK, max_tokens=4000, stream=True)
    assert [next(stream) for _ in range(5)]
    with ThreadPoolExecutor(1) as others:
        whole = others.submit(lambda: client.chat.completions.create(**ASK, max_tokens=400))
        time.sleep(0.3)
        (replica if killed == "replica" else engine).kill()
        assert list(stream)[-1].choices[0].finish_reason, "whose answer had begun gets the rest of it"
        usage = whole.result().usage
        assert usage is not None
        assert usage.completion_tokens, "who has no answer yet gets it from the next replica"

    def answered() -> bool:
        answer = httpx.post(f"{url}/v1/chat/completions", json=ASK | {"max_tokens": 2}, timeout=60)
        assert answer.status_code in (200, 429, 503), answer.text  # until Serve has noticed
        assert answer.status_code == 200 or int(answer.headers["retry-after"]) >= 1
        return answer.status_code == 200

    wait_for(answered, 60)
    assert endpoint.pids("Engine") != {pid}
    assert not psutil.wait_procs([replica, *children], timeout=10)[1]
    assert ray.is_initialized()
