"""The outermost middleware: request ids, the size limit of bodies, access log, metrics and unexpected errors."""

import json
import logging
import re
import time
import uuid
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from warren.config.json_logs import FIELDS
from warren_serve.admission import key_of
from warren_serve.errors import (
    CLIENT_CLOSED_REQUEST,
    ApiError,
    bad_request,
    clipped,
    error_of,
    internal_error,
    record_error,
    too_large,
)
from warren_serve.metrics import RequestMetrics
from warren_serve.tracing import finish_request, request_span

logger = logging.getLogger("warren_serve.access")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_NOT_OF_AN_ID = re.compile(r"[^A-Za-z0-9._-]")
_MAX_ID_CHARS = 128
_MAX_LOGGED_CHARS = 500


class RequestMiddleware:
    """ASGI middleware around each HTTP exchange. Of a request's headers, it only logs the id, never a key.

    Args:
        app: The application behind it.
        max_body_bytes: Longer bodies, counted as they arrive, are answered with 413.
        metrics: Counts every request.
        routes: The routes that requests are counted under.
        names_requests: Whether responses get an `x-request-id` here. Ray Serve's proxy adds one of its own.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_body_bytes: int,
        metrics: RequestMetrics,
        routes: Sequence[BaseRoute],
        names_requests: bool,
    ) -> None:
        self._app = app
        self._routes = routes
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes
        self._names_requests = names_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _HttpExchange(scope, receive, send, self._max_body_bytes, self._names_requests)
        self._metrics.in_flight.inc()
        with request_span(scope["method"], Headers(scope=scope)) as span:
            try:
                exchange.check_length()
                await self._app(scope, exchange.receive, exchange.send)
            except ApiError as error:
                await exchange.fail(error)
            except Exception:
                logger.exception("request %s failed", exchange.request_id)
                await exchange.fail(internal_error())
            finally:
                self._metrics.in_flight.dec()
                route = exchange.count(self._metrics, self._routes)
                finish_request(span, scope["method"], route, exchange.status)
                exchange.log()


class _HttpExchange:
    """One request and its response, as they pass."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, max_body_bytes: int, names_requests: bool) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._max_body_bytes, self._names_requests = max_body_bytes, names_requests
        self._num_bytes = 0
        self._status: int | None = None
        self._start = time.perf_counter()
        self._headers = Headers(scope=scope)
        self._method, self._path = scope["method"], scope["path"]  # before they are normalised
        _normalise(scope)
        request_id = self._headers.get("x-request-id", "")
        if names_requests and not _REQUEST_ID.fullmatch(request_id):
            request_id = uuid.uuid4().hex
        # Serve's proxy sends the client's own id back, so it is logged even where its form is wrong.
        self.request_id = _NOT_OF_AN_ID.sub("?", request_id[:_MAX_ID_CHARS])

    def check_length(self) -> None:
        """Refuse a request by its Content-Length, before a byte of the body is read."""
        length = self._headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or int(length[:20]) > self._max_body_bytes:
            raise too_large(self._max_body_bytes)

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._num_bytes += len(message.get("body", b""))
            if self._num_bytes > self._max_body_bytes:
                raise too_large(self._max_body_bytes)
            if not message.get("more_body") and self._lost_its_body():
                raise bad_request(
                    "The request asks to upgrade the connection, and its body was lost: this endpoint speaks HTTP/1.1. "
                    "Tell the client so, for example HttpClient.Version.HTTP_1_1 in Java or curl --http1.1.",
                    "upgrade_not_supported",
                )
        return message

    def _lost_its_body(self) -> bool:
        """Whether the server in front dropped an announced body, as uvicorn's parser does after `Upgrade`."""
        announced = self._headers.get("content-length", "0") != "0" or "transfer-encoding" in self._headers
        return not self._num_bytes and announced and "upgrade" in self._headers

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            if self._names_requests:
                MutableHeaders(scope=message)["x-request-id"] = self.request_id
        elif message["type"] == "http.response.body" and self._method == "HEAD":
            message = {**message, "body": b""}
        await self._send(message)

    async def fail(self, error: ApiError) -> None:
        """Send an error, unless a response has begun; that one can only be cut off."""
        record_error(self._scope, error)
        if self._status is None:
            await error.response()(self._scope, self._receive, self.send)

    @property
    def status(self) -> int:
        """The response's status; nginx's 499 where the client left before it."""
        return self._status or CLIENT_CLOSED_REQUEST

    def count(self, metrics: RequestMetrics, routes: Sequence[BaseRoute]) -> str:
        """Count the request under its route, and return that: clients could make up labels if it were its path.

        The route is looked up here, because a refused request never reaches the router.
        """
        path = next((one.path for one in routes if one.matches(self._scope)[0] is not Match.NONE), "none")  # type: ignore[attr-defined]
        route = str(path)
        if (reason := error_of(self._scope)) is not None:
            metrics.errors.labels(reason).inc()
        metrics.requests.labels(route, str(self.status)).inc()
        metrics.duration_s.labels(route).observe(time.perf_counter() - self._start)
        return route

    def log(self) -> None:
        """Write one line of JSON."""
        line = {
            "request_id": self.request_id,
            "method": self._method,
            "path": clipped(self._path, _MAX_LOGGED_CHARS),
            "status": self._status,
            "error": error_of(self._scope),
            "key": key_of(self._scope),
            "body_bytes": self._num_bytes,
            "duration_ms": round(1000 * (time.perf_counter() - self._start), 1),
        }
        logger.info(json.dumps(line), extra={FIELDS: line})


def _normalise(scope: Scope) -> None:
    """Route HEAD as GET, and drop a slash at the end of the path: a redirect would have to name a host.

    Only the path below the application's route prefix (`root_path`) is changed.
    """
    if scope["method"] == "HEAD":
        scope["method"] = "GET"
    root, path = scope.get("root_path", ""), scope["path"]
    below = path.removeprefix(root)
    if path.startswith(f"{root}/") and below.endswith("/"):
        scope["path"] = root + (below.rstrip("/") or "/")
