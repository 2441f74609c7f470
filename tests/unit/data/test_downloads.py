"""Servers that dawdle: a download ends at its deadline, and what passes is tried again."""

import http.server
import threading
import time
from collections.abc import Iterator

import pytest

import raw_pairs
from warren.data.importers.image_sources import ImageSources
from warren.errors import BadSampleError

A = raw_pairs.colour_image(0)


class _Dawdling(http.server.BaseHTTPRequestHandler):
    """Answers as slowly as a server can, and counts."""

    asked: list[str] = []  # noqa: RUF012  # of the class, so that the test sees it

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path == "/retry":
            self.send_response(429)
            self.send_header("Retry-After", "3600")
            self.end_headers()
        elif self.path == "/soon" and self.asked.count("/soon") == 1:
            self.send_response(503)
            self.send_header("Retry-After", "0")
            self.end_headers()
        elif self.path == "/soon":
            self._send(A)
        elif self.path == "/short" and self.asked.count("/short") == 1:
            self.send_response(200)
            self.send_header("Content-Length", str(2 * len(A)))
            self.end_headers()
            self.wfile.write(A)
        elif self.path == "/short":
            self._send(A)
        elif self.path == "/around":
            self.send_response(302)
            self.send_header("Location", "/around")
            self.end_headers()
        elif self.path == "/headers":
            self._drip(b"HTTP/1.0 200 OK\r\n" + b"x-a: b\r\n" * 1000)
        elif self.path == "/body":
            self.send_response(200)
            self.end_headers()
            self._drip(b"\xff" * 1000)

    def _send(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _drip(self, data: bytes) -> None:
        for byte in data:
            try:
                self.wfile.write(bytes([byte]))
            except OSError:
                return
            time.sleep(0.02)


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Dawdling) as found:
        found.daemon_threads = True
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_port}"
        found.shutdown()


def test_no_server_holds_an_import(server: str) -> None:
    """Each of these took minutes or for ever: the server's wish, or a timeout that starts anew with every byte."""
    _Dawdling.asked.clear()
    patient = ImageSources("/", deadline_s=60)
    assert patient.fetch(f"{server}/soon") == A
    assert patient.fetch(f"{server}/short") == A
    with pytest.raises(BadSampleError, match=rf"'{server}/retry' cannot be fetched: HTTP 429, try again in 3600 s"):
        patient.fetch(f"{server}/retry")
    assert _Dawdling.asked.count("/retry") == 1
    with pytest.raises(BadSampleError, match=f"{server}/around"):
        patient.fetch(f"{server}/around")
    hasty = ImageSources("/", deadline_s=0.3)
    for path in ("headers", "body"):
        with pytest.raises(BadSampleError, match=rf"'{server}/{path}' cannot be fetched: it was not here within 0.3 s"):
            hasty.fetch(f"{server}/{path}")
    with pytest.raises(BadSampleError, match=r"0\.3 s"):
        hasty.fetch_all([A, f"{server}/body", f"{server}/headers"])
