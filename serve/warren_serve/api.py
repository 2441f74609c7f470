"""The endpoint's routes, as a FastAPI application around one `ChatService`. It knows nothing of Ray."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from warren_serve.admission import Admission, OwnAccounts, SharedAccounts, visit_of
from warren_serve.backend import ResponseChunk
from warren_serve.errors import CLIENT_CLOSED_REQUEST, ApiError, bad_request, unavailable
from warren_serve.metrics import CONTENT_TYPE
from warren_serve.middleware import RequestMiddleware
from warren_serve.openapi import describe
from warren_serve.pages import SlashBehindPrefix, page_routes
from warren_serve.protocol import GenerationFields, parse_chat_request, parse_completion_request
from warren_serve.responses import ChatResponse, CompletionResponse
from warren_serve.service import ChatService

T = TypeVar("T")
MetricsText = Callable[[], Awaitable[bytes]]


class _Stream(StreamingResponse):
    """An answer as server-sent events; its slots are free whenever the response ends, also before it began."""

    def __init__(self, answer: ChatResponse, first: ResponseChunk | None) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(answer.events(first), media_type="text/event-stream", headers=headers)
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._answer.close()


def create_api(
    service: ChatService,
    figures: MetricsText | None = None,
    accounts: SharedAccounts | None = None,
    names_requests: bool = True,
) -> FastAPI:
    """Build the application.

    Args:
        service: What answers; the caller closes it.
        figures: What `/metrics` shows; None for the figures of this process.
        accounts: What each key has used; None for the accounts of this process.
        names_requests: Whether answers get an `x-request-id` here; not behind Ray Serve's proxy, which adds one.
    """
    # No redirects to paths with or without a slash: their target would be built from the client's Host header.
    app = FastAPI(title="Warren", docs_url=None, redoc_url=None, openapi_url="/openapi.json", redirect_slashes=False)
    routers = [
        _health_routes(service),
        _metrics_routes(figures or service.figures),
        _model_routes(service),
        _chat_routes(service),
        *([page_routes()] if service.settings.web_page else ()),
    ]
    for router in routers:
        app.include_router(router)
    settings = service.settings
    # The last one added is the outermost.
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
    describe(app)
    return app


def _health_routes(service: ChatService) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/healthz", summary="Is the process there?")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/readyz", summary="Does the model answer?")
    async def readyz() -> dict[str, str]:
        if not service.backend.is_alive:
            raise unavailable("The engine does not run.")
        return {"status": "ready", "model": service.model_name, "version": service.release.version}

    return router


def _metrics_routes(figures: MetricsText) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/metrics", summary="Figures in Prometheus' text format", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(await figures(), media_type=CONTENT_TYPE)

    return router


def _model_routes(service: ChatService) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["models"])
    release = service.release
    card = {
        "id": service.model_name,
        "object": "model",
        "created": release.created,
        "owned_by": "warren",
        "release": release.name,
        "version": release.version,
        "lineage": release.lineage,
        "scores": release.scores,
        "max_context_tokens": service.max_context_tokens,
    }

    @router.get("/models", summary="The model served here, with its lineage and scores")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [card]}

    @router.get("/models/{model:path}", summary="One model")
    async def get_model(model: str) -> dict[str, Any]:
        _check_model(service, model)
        return card

    return router


def _chat_routes(service: ChatService) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["chat"])

    @router.post("/chat/completions", summary="Continue a conversation", response_model=None)
    async def chat_completions(request: Request) -> Response:
        return await _answer(service, request, parse_chat_request, ChatResponse)

    @router.post("/completions", summary="Continue a text", response_model=None)
    async def completions(request: Request) -> Response:
        return await _answer(service, request, parse_completion_request, CompletionResponse)

    return router


async def _answer(
    service: ChatService, request: Request, parse: Callable[[bytes], GenerationFields], kind: type[ChatResponse]
) -> Response:
    asked = parse(await _read_body(request, service.settings.body_timeout_s))
    _check_model(service, asked.model)
    if not service.backend.is_alive:
        raise unavailable("The engine does not run.")
    visit, deadline = visit_of(request.scope), service.deadline()
    engine_request = await _unless_gone(request, service.prepare(asked, visit, deadline))
    answer = kind(service, engine_request, visit, deadline)
    if not asked.stream:
        return JSONResponse(await _unless_gone(request, answer.whole()))
    return _Stream(answer, await _unless_gone(request, answer.first()))


def _check_model(service: ChatService, name: str) -> None:
    if name != service.model_name:
        raise ApiError(
            404,
            f"The model {name[:200]!r} does not exist; this endpoint serves {service.model_name!r}.",
            code="model_not_found",
            param="model",
        )


async def _read_body(request: Request, timeout_s: float) -> bytes:
    """Read the body; the gate counts it."""
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


async def _on_api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _on_validation_error(_: Request, error: Exception) -> Response:
    return bad_request("The request does not fit the endpoint.", "invalid_value").response()


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    message = f"{request.method} {request.url.path[:200]}: {error.detail}."
    return ApiError(error.status_code, message, code=code, headers=dict(error.headers or {})).response()
