"""A TCP proxy in front of a real HTTP server that does to the wire what bad networks and busy servers do."""

import contextlib
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Literal

_BUFFER_BYTES = 16_384
_METHODS = (b"GET ", b"PUT ", b"POST ", b"HEAD ", b"DELETE ")


@dataclass(frozen=True)
class Fault:
    """What happens to one request.

    Attributes:
        kind: `error` answers 503 without asking the server; `cut` closes the connection after `after_bytes` of the
            answer; `lose` lets the server do its work and closes without an answer; `slow` lets the answer trickle.
        methods: Requests that it may happen to; others pass.
    """

    kind: Literal["error", "cut", "lose", "slow"]
    methods: tuple[str, ...] = ("GET",)
    after_bytes: int = 0
    status: int = 503


class FaultProxy:
    """Forwards 127.0.0.1:`port` to a server; each request takes the next fault that is meant for its method."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self.port = self._listener.getsockname()[1]
        self.faults: deque[Fault] = deque()
        self.requests: list[str] = []
        self.answered_bytes = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "FaultProxy":
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """Forward one connection's requests, one after the other."""
        connection = _Connection(self, client)
        with contextlib.suppress(OSError), client:
            server = socket.create_connection(("127.0.0.1", self._server_port))
            with server:
                threading.Thread(target=connection.answer, args=(server,), daemon=True).start()
                while data := client.recv(_BUFFER_BYTES):
                    if data.startswith(_METHODS) and not connection.take(data):
                        return
                    server.sendall(data)

    def next_fault(self, request: str) -> Fault | None:
        """Note a request, and return what is to happen to it."""
        with self._lock:
            self.requests.append(request)
            method = request.split(" ", 1)[0]
            for fault in self.faults:
                if method in fault.methods:
                    self.faults.remove(fault)
                    return fault
        return None


class _Connection:
    def __init__(self, proxy: FaultProxy, client: socket.socket) -> None:
        self._proxy, self._client = proxy, client
        self._fault: Fault | None = None
        self._sent_bytes = 0

    def take(self, data: bytes) -> bool:
        """Look at the start of a request; False has answered it."""
        self._fault = self._proxy.next_fault(data.split(b"\r\n", 1)[0].decode())
        self._sent_bytes = 0
        if self._fault is None or self._fault.kind != "error":
            return True
        body = b"<Error><Code>ServiceUnavailable</Code><Message>busy</Message></Error>"
        head = f"HTTP/1.1 {self._fault.status} Busy\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        self._client.sendall(head.encode() + body)
        with contextlib.suppress(OSError):  # what the client still sends would reset the answer
            self._client.settimeout(1)
            while self._client.recv(_BUFFER_BYTES):
                pass
        return False

    def answer(self, server: socket.socket) -> None:
        """Forward the server's answers, as far as the current fault lets them."""
        with contextlib.suppress(OSError):
            while data := server.recv(_BUFFER_BYTES):
                fault = self._fault
                if fault and fault.kind == "lose" and not data.startswith(b"HTTP/1.1 100"):
                    break
                if fault and fault.kind == "cut":
                    data = data[: fault.after_bytes - self._sent_bytes]
                if fault and fault.kind == "slow":
                    time.sleep(0.02)
                self._client.sendall(data)
                self._sent_bytes += len(data)
                self._proxy.answered_bytes += len(data)
                if fault and fault.kind == "cut" and self._sent_bytes >= fault.after_bytes:
                    break
        with contextlib.suppress(OSError):
            self._client.shutdown(socket.SHUT_RDWR)
