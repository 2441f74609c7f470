"""The endpoint's routes: a FastAPI application around one `ChatService`. It does not know Ray."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from warren_serve.admission import Admission, OwnAccounts, RateLimitLease, SharedAccounts, lease_of
from warren_serve.backend import EngineRequest, ResponseChunk
from warren_serve.chat_page import SlashBehindPrefix, page_routes
from warren_serve.errors import CLIENT_CLOSED_REQUEST, ApiError, bad_request, record_error, unavailable
from warren_serve.metrics import CONTENT_TYPE
from warren_serve.middleware import RequestMiddleware
from warren_serve.openapi import describe_requests, error_responses
from warren_serve.protocol import GenerationFields, parse_chat_request, parse_completion_request
from warren_serve.response_models import (
    ChatCompletion,
    HealthStatus,
    ReadyStatus,
    ServedModel,
    ServedModels,
    TextCompletion,
)
from warren_serve.responses import ChatResponse, CompletionResponse
from warren_serve.service import ChatService

T = TypeVar("T")
MetricsText = Callable[[], Awaitable[bytes]]
_READING_ERRORS = (401, 404, 503)


class _Stream(StreamingResponse):
    """A response as server-sent events. Its slots are freed whenever it ends, also before it has begun."""

    def __init__(self, response: ChatResponse, first: ResponseChunk | None) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(response.events(first), media_type="text/event-stream", headers=headers)
        self._response = response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            if self._response.failure is not None:
                record_error(scope, self._response.failure)
            await self._response.close()


def create_api(
    service: ChatService,
    metrics_text: MetricsText | None = None,
    accounts: SharedAccounts | None = None,
    names_requests: bool = True,
) -> FastAPI:
    """Build the application.

    Args:
        service: Answers requests; the caller closes it.
        metrics_text: Returns the text of `/metrics`; None takes the metrics of this process.
        accounts: What each key has used; None takes accounts of this process alone.
        names_requests: Whether responses get an `x-request-id` here; not behind Ray Serve's proxy, which adds one.
    """
    # No redirects to paths with or without a slash, because their target would come from the client's Host header.
    app = FastAPI(title="Warren", docs_url=None, redoc_url=None, openapi_url="/openapi.json", redirect_slashes=False)
    routers = [
        _health_routes(service),
        _metrics_routes(metrics_text or service.metrics_text),
        _model_routes(service),
        _chat_routes(service),
        *([page_routes()] if service.settings.web_page else ()),
    ]
    for router in routers:
        app.include_router(router)
    settings = service.settings
    # The middleware added last is the outermost.
    app.add_middleware(
        Admission,
        keys=service.keys,
        accounts=accounts or OwnAccounts(settings.limits),
        limits=settings.limits,
        max_requests=settings.ingress_max_ongoing_requests,
    )
    if settings.web_page:
        app.add_middleware(SlashBehindPrefix)
    app.add_middleware(
        RequestMiddleware,
        max_body_bytes=settings.max_body_bytes,
        metrics=service.metrics,
        routes=[route for router in routers for route in router.routes],
        names_requests=names_requests,
    )
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    describe_requests(app)
    return app


def _health_routes(service: ChatService) -> APIRouter:
    router = APIRouter(tags=["health"], responses=error_responses(*_READING_ERRORS))

    @router.get("/healthz", summary="Does the process run?")
    async def healthz() -> HealthStatus:
        return HealthStatus(status="ok")

    @router.get("/readyz", summary="Does the model answer?")
    async def readyz() -> ReadyStatus:
        if not service.backend.is_alive:
            raise unavailable("The engine does not run.")
        return ReadyStatus(status="ready", model=service.model_name, version=service.release.version)

    return router


def _metrics_routes(metrics_text: MetricsText) -> APIRouter:
    router = APIRouter(tags=["health"], responses=error_responses(*_READING_ERRORS))

    @router.get("/metrics", summary="Metrics in Prometheus' text format", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(await metrics_text(), media_type=CONTENT_TYPE)

    return router


def _model_routes(service: ChatService) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["models"], responses=error_responses(*_READING_ERRORS))

    @router.get("/models", summary="The model served here, with its lineage and scores")
    async def list_models() -> ServedModels:
        return ServedModels(object="list", data=[_served(service)])

    @router.get("/models/{model:path}", summary="One model")
    async def get_model(model: str) -> ServedModel:
        _check_model(service, model)
        return _served(service)

    return router


def _served(service: ChatService) -> ServedModel:
    release = service.release
    return ServedModel(
        id=service.model_name,
        object="model",
        created=release.created,
        owned_by="warren",
        release=release.name,
        version=release.version,
        lineage=release.lineage.to_json(),
        scores=release.scores,
        max_context_tokens=service.max_context_tokens,
    )


def _chat_routes(service: ChatService) -> APIRouter:
    # Both routes return a `Response`, so FastAPI only describes the models and never validates with them.
    responses = {**error_responses(), 200: {"content": {"text/event-stream": {}}}}
    router = APIRouter(prefix="/v1", tags=["chat"], responses=responses)

    @router.post("/chat/completions", summary="Continue a conversation", response_model=ChatCompletion)
    async def chat_completions(request: Request) -> Response:
        return await _answer(service, request, parse_chat_request, ChatResponse)

    @router.post("/completions", summary="Continue a text", response_model=TextCompletion)
    async def completions(request: Request) -> Response:
        return await _answer(service, request, parse_completion_request, CompletionResponse)

    return router


async def _answer(
    service: ChatService, http: Request, parse: Callable[[bytes], GenerationFields], kind: type[ChatResponse]
) -> Response:
    engine_request, lease, deadline = await _prepared(service, http, parse)
    response = kind(service, engine_request, lease, deadline)
    if not engine_request.request.stream:
        return Response(await _unless_gone(http, response.whole()), media_type="application/json")
    return _Stream(response, await _unless_gone(http, response.first()))


async def _prepared(
    service: ChatService, http: Request, parse: Callable[[bytes], GenerationFields]
) -> tuple[EngineRequest, RateLimitLease, float]:
    """Read and check a request. The body's megabytes of images are in no variable once this has returned."""
    request = parse(await _read_body(http, service.settings.body_timeout_s))
    _check_model(service, request.model)
    if not service.backend.is_alive:
        raise unavailable("The engine does not run.")
    lease, deadline = lease_of(http.scope), service.deadline()
    prepared = service.prepare(request, lease, deadline, http.headers.get("x-session-id"))
    return await _unless_gone(http, prepared), lease, deadline


def _check_model(service: ChatService, name: str) -> None:
    if name != service.model_name:
        raise ApiError(
            404,
            f"The model {name[:200]!r} does not exist; this endpoint serves {service.model_name!r}.",
            code="model_not_found",
            param="model",
        )


async def _read_body(request: Request, timeout_s: float) -> bytes:
    """Read the body, whose size `RequestMiddleware` limits."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        message = "The Content-Type must be application/json."
        raise ApiError(415, message, code="unsupported_media_type")
    try:
        async with asyncio.timeout(timeout_s):
            return await request.body()
    except TimeoutError:
        message = f"The body did not arrive within {timeout_s:g} s."
        raise ApiError(408, message, code="request_timeout", kind="timeout_error") from None
    except ClientDisconnect:
        raise _client_gone() from None


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Wait for `work`, but cancel it as soon as the client closes the connection.

    Raises:
        ApiError: 499; the client is gone.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise _client_gone()
        return task.result()
    finally:
        # Cancelled too when this request itself is: Serve does that when a client leaves.
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _client_gone() -> ApiError:
    return ApiError(CLIENT_CLOSED_REQUEST, "The client closed the connection.", code="client_closed_request")


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    record_error(request.scope, error)
    return error.response()


async def _on_validation_error(request: Request, error: Exception) -> Response:
    return await _on_api_error(request, bad_request("The request does not fit the endpoint.", "invalid_value"))


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    message = f"{request.method} {request.url.path[:200]}: {error.detail}."
    refusal = ApiError(error.status_code, message, code=code, headers=dict(error.headers or {}))
    return await _on_api_error(request, refusal)
