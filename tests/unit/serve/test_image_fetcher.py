"""Images by URL: off by default, only from allowed hosts, never from where only the server can go."""

import ipaddress
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from chat_parts import image_part, image_url, text, user
from warren.errors import ConfigError
from warren.inference import GenerationRequest, TokenDelta
from warren.inference.testing import png_bytes
from warren_serve.errors import ApiError
from warren_serve.image_fetcher import ImageFetcher, is_public
from warren_serve.settings import ServeSettings

RED = png_bytes((250, 1, 2))
URL = "messages.0.content.0.image_url.url"


def hello(_: GenerationRequest) -> list[TokenDelta]:
    return [TokenDelta("x", (5,), finish_reason="stop")]


class _Pictures(BaseHTTPRequestHandler):
    """An image store with a few bad habits."""

    def do_GET(self) -> None:
        self.server.seen.append(self.path)  # type: ignore[attr-defined]
        port = self.connection.getsockname()[1]
        name, _, rest = self.path[1:].partition("/")
        if name == "to":
            self.send_response(302)
            self.send_header("location", rest.replace("PORT", str(port)))
            self.send_header("content-length", "0")
            self.end_headers()
            return
        status, body = {"ok.png": (200, RED), "text.png": (200, b"<html>"), "large": (200, RED * 900)}.get(
            name, (404, b"")
        )
        self.send_response(status)
        self.end_headers()
        if name == "slow":
            time.sleep(2)
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def store() -> Iterator[Any]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Pictures)
    server.daemon_threads = True
    server.seen = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def ask(scripted: Any, store: Any) -> Any:
    """Return a function that asks about images at URLs; PORT in them is the store's."""
    port = store.server_address[1]

    def send(*urls: str, hosts: Any = None, networks: Any = ("127.0.0.1/32",), **settings: Any) -> Any:
        store.seen.clear()
        hosts = [f"127.0.0.1:{port}", f"localhost:{port}"] if hosts is None else hosts
        allowed = {"image_hosts": [host.replace("PORT", str(port)) for host in hosts], "image_networks": list(networks)}
        limits = {"image_fetch_timeout_s": 0.5, "max_image_bytes": 50_000}
        endpoint, engine = scripted(hello, allowed | limits | settings)
        parts = [image_url(url.replace("PORT", str(port))) for url in urls]
        answer = endpoint.chat(messages=[user(*parts, text("what?"))])
        return answer, engine

    return send


def test_images_come_from_allowed_hosts_and_mix_with_inline_ones(scripted: Any, store: Any, ask: Any) -> None:
    answer, engine = ask("http://127.0.0.1:PORT/ok.png", "http://localhost:PORT/to/http://127.0.0.1:PORT/ok.png")
    assert answer.status_code == 200, answer.text
    assert engine.requests[0].pixels[:, :, 0, 0].tolist() == [[250, 1, 2]] * 2
    port = store.server_address[1]
    endpoint, engine = scripted(hello, {"image_hosts": [f"127.0.0.1:{port}"], "image_networks": ["127.0.0.0/8"]})
    parts = (image_part(), image_url(f"http://127.0.0.1:{port}/ok.png"))
    assert endpoint.chat(messages=[user(*parts)]).status_code == 200
    assert engine.requests[0].pixels[:, :, 0, 0].tolist() == [[200, 30, 30], [250, 1, 2]]


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://127.0.0.1:PORT/missing.png", "image_url_unreachable"),
        ("http://127.0.0.1:PORT/text.png", "invalid_image"),
        ("http://127.0.0.1:PORT/large", "image_too_large"),
        ("http://127.0.0.1:PORT/slow", "image_url_unreachable"),
        ("http://127.0.0.1:PORT/to/http://127.0.0.2:PORT/ok.png", "image_url_not_allowed"),
        ("http://127.0.0.1:PORT/to/file:///etc/passwd", "invalid_image_url"),
        ("http://127.0.0.1:PORT/to/gopher://127.0.0.1:PORT/", "invalid_image_url"),
        ("http://127.0.0.1:PORT/to//to//to//to//to/", "image_url_unreachable"),
        ("https://127.0.0.1:PORT/ok.png", "image_url_unreachable"),
        ("http://user@127.0.0.1:PORT/ok.png", "invalid_image_url"),
        ("http://a:b@127.0.0.1:PORT/ok.png", "invalid_image_url"),
        ("http://other.example:PORT/ok.png", "image_url_not_allowed"),
        ("http://127.0.0.1/ok.png", "image_url_not_allowed"),
        ("http://127.0.0.1:99999/ok.png", "invalid_image_url"),
        ("http://[::1/ok.png", "invalid_image_url"),
        ("http:///ok.png", "invalid_image_url"),
        ("http://127.0.0.1:PORT/" + "x" * 3000, "invalid_image_url"),
        ("HTTP://127.0.0.1:PORT/\r\nhost: x", "image_url_unreachable"),
    ],
)
def test_an_image_that_cannot_be_had_is_a_typed_400(ask: Any, url: str, code: str) -> None:
    answer, engine = ask(url)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, code, URL), error["message"]
    assert not engine.requests


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "0.0.0.0",
        "169.254.169.254",
        "10.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::7f00:1]",
    ],
)
def test_addresses_that_are_not_public_are_never_connected_to(ask: Any, store: Any, host: str) -> None:
    """The host is allowed by name; what it stands for is not."""
    bare = host.strip("[]")
    answer, _ = ask(
        f"http://{host}:PORT/ok.png", hosts=["*", f"{bare}:PORT"] if ":" not in bare else ["*"], networks=()
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] in ("image_url_unreachable", "image_url_not_allowed", "invalid_image_url")
    assert store.seen == []


@pytest.mark.parametrize("entry", ["bücher.invalid", "xn--bcher-kva.invalid", "BÜCHER.invalid", "*.invalid"])
@pytest.mark.parametrize("host", ["bücher.invalid", "xn--bcher-kva.invalid", "BÜCHER.invalid"])
def test_a_name_with_other_letters_is_allowed_however_it_is_written(entry: str, host: str) -> None:
    fetcher = ImageFetcher(ServeSettings.parse({"release": "r", "image_hosts": [entry]}))
    assert fetcher._checked(f"http://{host}/a.png", URL).raw_host == "xn--bcher-kva.invalid"
    with pytest.raises(ApiError, match="does not fetch from that host"):
        fetcher._checked("http://bucher.example/a.png", URL)


def test_a_redirect_to_an_allowed_name_with_a_private_address_is_refused(ask: Any, store: Any) -> None:
    """`localhost` is on the list of hosts, but only 127.0.0.1 is on that of networks: ::1 and 127.0.0.2 are not."""
    answer, _ = ask("http://127.0.0.1:PORT/to/http://127.0.0.2:PORT/ok.png", hosts=["127.0.0.1:PORT", "127.0.0.2:PORT"])
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "image_url_unreachable")
    assert store.seen == ["/to/http://127.0.0.2:" + str(store.server_address[1]) + "/ok.png"]


def test_nothing_is_fetched_for_a_request_that_does_not_fit(scripted: Any, store: Any) -> None:
    store.seen.clear()
    port = store.server_address[1]
    hosts = {"image_hosts": [f"127.0.0.1:{port}"], "image_networks": ["127.0.0.1/32"]}
    endpoint, _ = scripted(hello, hosts)
    parts = (image_url(f"http://127.0.0.1:{port}/ok.png"), text("é" * 300))
    assert endpoint.chat(messages=[user(*parts)]).json()["error"]["code"] == "context_length_exceeded"
    assert store.seen == []


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::808:808", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("224.0.0.1", False),
        ("239.1.1.1", False),
        ("255.255.255.255", False),
        ("0.0.0.0", False),
        ("240.0.0.1", False),
        ("::", False),
        ("::1", False),
        ("fe80::1", False),
        ("fc00::1", False),
        ("fd00:ec2::254", False),
        ("ff02::1", False),
        ("::ffff:169.254.169.254", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("2002:7f00:1::", False),
        ("2001:0:7f00:1::1", False),
    ],
)
def test_what_is_public(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


@pytest.mark.parametrize(
    "settings",
    [
        {"image_hosts": ["http://a"]},
        {"image_hosts": ["a/b"]},
        {"image_hosts": "a"},
        {"image_networks": ["10.0.0.1/8"]},
        {"image_networks": ["a"]},
    ],
)
def test_wrong_hosts_and_networks_are_named(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        ServeSettings.parse({"release": "r"} | settings)
