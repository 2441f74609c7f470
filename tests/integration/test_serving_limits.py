"""What the endpoint promises, where Ray Serve's own limits lie below it: sizes, queues, clients that leave.

One application with small limits; each test asks with keys of its own.
"""

import base64
import hashlib
import io
import itertools
import json
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from serve_endpoint import Endpoint, chat, publish_random_model, wait_for
from warren.inference.testing import png_bytes
from warren.storage import Location

pytestmark = pytest.mark.timeout(300)

PATH = "/v1/chat/completions"
MAX_CONCURRENT = 3
MAX_OPEN = 12
TOKENS_PER_MINUTE = 600
KEYS = [f"key-{number}" for number in range(80)]


@pytest.fixture(scope="module")
def url(endpoint: Endpoint, storage_root: Location, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("limited")
    release = publish_random_model(storage_root, "limits", folder / "model", max_position_embeddings=1024)
    keys = folder / "keys"
    keys.write_text("\n".join(hashlib.sha256(key.encode()).hexdigest() for key in KEYS))
    settings: dict[str, Any] = {
        "api_keys_file": str(keys),
        "num_slots": 2,
        "max_ongoing_requests": 2,
        "max_queued_requests": 2,
        "max_concurrent_requests": MAX_CONCURRENT,
        "tokens_per_minute": TOKENS_PER_MINUTE,
        "ingress_max_ongoing_requests": MAX_OPEN,
        "image_decode_timeout_s": 1.0,
    }
    endpoint.deploy(chat(release, **settings))
    endpoint.wait_for_status("RUNNING")
    return endpoint.url


@pytest.fixture(scope="module")
def fresh() -> Iterator[str]:
    """Keys that nobody has used."""
    return iter(KEYS)


def body(words: str = "what is there?", *images: bytes, **changes: Any) -> dict[str, Any]:
    urls = ["data:image/png;base64," + base64.b64encode(image).decode() for image in images]
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls] + [{"type": "text", "text": words}]
    asked = {"model": "tiny", "messages": [{"role": "user", "content": parts}], "max_tokens": 2, "temperature": 0}
    return asked | changes


def ask(url: str, key: str, asked: dict[str, Any]) -> httpx.Response:
    return httpx.post(url + PATH, json=asked, headers={"authorization": f"Bearer {key}"}, timeout=120)


def connect(url: str, key: str, num_bytes: int, content: bytes) -> socket.socket:
    """Send a request's head and what there is of its body."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    head = f"POST {PATH} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\nauthorization: Bearer {key}\r\n"
    connection.sendall(f"{head}content-length: {num_bytes}\r\n\r\n".encode() + content)
    return connection


def noise(side: int) -> bytes:
    """Return a PNG that takes three bytes a pixel."""
    pixels = np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def test_images_up_to_the_size_of_a_body_are_answered(url: str, fresh: Iterator[str]) -> None:
    """gRPC between replicas refuses messages over 4 MiB."""
    for images in ([noise(1200)], [noise(700)] * 4, [noise(2200)]):
        assert sum(map(len, images)) > 4 << 20
        answer = ask(url, next(fresh), body("what?", *images))
        assert answer.status_code == 200, answer.text
    answer = ask(url, next(fresh), body("what?", noise(2400)))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


def test_overload_is_a_typed_429_with_retry_after(url: str, fresh: Iterator[str]) -> None:
    """First the engines' queue is full, then the ingress holds all it may."""
    keys = list(itertools.islice(fresh, 10))
    with ThreadPoolExecutor(len(keys)) as pool:
        answers = list(pool.map(lambda key: ask(url, key, body(max_tokens=300)), keys))
    assert {answer.status_code for answer in answers} == {200, 429}
    refused = [answer for answer in answers if answer.status_code == 429]

    keys = list(itertools.islice(fresh, MAX_OPEN // MAX_CONCURRENT))
    waiting = [connect(url, key, 1000, b"{") for key in keys for _ in range(MAX_CONCURRENT)]
    other = next(fresh)
    try:
        refused.append(wait_for(lambda: answer if (answer := ask(url, other, body())).status_code != 200 else None, 15))
        assert httpx.get(f"{url}/readyz").status_code == 200
    finally:
        for connection in waiting:
            connection.close()
    for answer in refused:
        error = answer.json()["error"]
        assert (answer.status_code, error["type"], error["code"]) == (429, "rate_limit_error", "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
    wait_for(lambda: ask(url, other, body()).status_code == 200, 30)


def test_clients_that_leave_at_any_time_keep_no_place(url: str, fresh: Iterator[str]) -> None:
    """While their key is looked up, while the accounts answer, in the middle of their body, while they wait."""
    key = next(fresh)
    content = json.dumps(body(max_tokens=20)).encode()
    for number in range(24):
        is_whole = number % 3
        connection = connect(url, key, len(content), content if is_whole else content[:50])
        time.sleep(0.003 * (number % 12))
        connection.close()
    for size, pause_s in itertools.product((50, 70_000, 3_000_000), (0.05, 0.3, 0.3)):
        connection = connect(url, key, 4_000_000, b"{" * size)
        time.sleep(pause_s)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not an end
        connection.close()

    def all_at_once(_: Any = None) -> bool:
        with ThreadPoolExecutor(MAX_CONCURRENT) as pool:
            answers = list(pool.map(lambda _: ask(url, key, body()), range(MAX_CONCURRENT)))
        return all(answer.status_code == 200 for answer in answers)

    wait_for(all_at_once, 30)


def test_tokens_generated_for_clients_who_left_are_charged(url: str, fresh: Iterator[str]) -> None:
    """Two answers are generated side by side; when the one that streams is well under way, both clients leave.

    The other has an image of more than 2 MiB, which takes another way to the engine.
    """
    whole, streamed = next(fresh), next(fresh)
    asked = body(max_tokens=550, temperature=0.7, seed=3)
    content = json.dumps(body("what?", noise(900), max_tokens=550)).encode()
    connection = connect(url, whole, len(content), content)
    headers = {"authorization": f"Bearer {streamed}"}
    with httpx.stream("POST", url + PATH, json=asked | {"stream": True}, headers=headers, timeout=120) as answer:
        assert answer.status_code == 200
        for num_lines, _ in enumerate(answer.iter_lines()):
            if num_lines > 100:
                break
    connection.close()
    time.sleep(1)
    for key in (whole, streamed):
        refused = ask(url, key, body(max_tokens=TOKENS_PER_MINUTE - 15))
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "rate_limit_exceeded")
        assert "tokens per minute" in refused.json()["error"]["message"]
        assert ask(url, key, body()).status_code == 200, "what was not generated came back"


def test_an_image_that_takes_long_to_decode_is_refused_and_others_are_answered(url: str, fresh: Iterator[str]) -> None:
    plain = png_bytes()
    chunk = struct.pack(">I", 0) + b"abCd" + struct.pack(">I", zlib.crc32(b"abCd"))
    bomb = plain[:33] + chunk * 500_000 + plain[33:]
    keys = [next(fresh) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda key: ask(url, key, body("what?", bomb)), keys[:2]))
        others = list(pool.map(lambda key: ask(url, key, body("what?", plain)), keys[2:]))
    for answer in answers:
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (400, "invalid_image")
        assert error["param"] == "messages.0.content.0.image_url.url"
    assert [answer.status_code for answer in others] == [200, 200]


def test_none_of_these_requests_was_an_error_of_the_server(url: str, fresh: Iterator[str]) -> None:
    """Clients that left, also in the middle of their body, are counted as such."""
    headers = {"authorization": f"Bearer {next(fresh)}"}
    assert httpx.get(f"{url}/v1/models/other", headers=headers).status_code == 404

    def requests() -> str:
        """Return the counts, once they include the request above, which came last."""
        text = httpx.get(f"{url}/metrics", headers=headers, timeout=60).text
        lines = "\n".join(line for line in text.splitlines() if line.startswith("warren_") and "status=" in line)
        return lines if 'status="404"' in lines else ""

    counts = wait_for(requests, 60)
    assert 'status="499"' in counts
    assert 'status="5' not in counts, counts
