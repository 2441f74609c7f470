"""The OpenAPI description. Two routes parse their bodies themselves, so FastAPI cannot know their request schemas."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from warren_serve.protocol import ChatRequest, CompletionRequest, GenerationFields
from warren_serve.response_models import ErrorResponse

_REQUESTS: Mapping[str, type[GenerationFields]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
}
_ERRORS = {
    400: "Something in the request is wrong; `param` names it.",
    401: "A valid API key is needed.",
    404: "The model is not served here.",
    408: "The body took too long to arrive.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    429: "All slots are taken, or the key has reached a limit; see Retry-After.",
    500: "The server had an error.",
    503: "The replica does not answer; see Retry-After.",
    504: "The answer took too long.",
}

Responses = dict[int | str, dict[str, Any]]
"""FastAPI's `responses` of a route."""


def error_responses(*statuses: int) -> Responses:
    """Return the description of error responses; of all without arguments."""
    return {status: {"model": ErrorResponse, "description": _ERRORS[status]} for status in statuses or _ERRORS}


def describe_requests(app: FastAPI) -> None:
    """Add the request schemas to the application's description, and drop FastAPI's own validation error."""

    def openapi() -> dict[str, Any]:
        if not app.openapi_schema:
            app.openapi_schema = _schema(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _schema(app: FastAPI) -> dict[str, Any]:
    schema = get_openapi(title=app.title, version="1", routes=app.routes)
    components = schema["components"]["schemas"]
    for operations in schema["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    for path, request in _REQUESTS.items():
        model = request.model_json_schema(ref_template="#/components/schemas/{model}")
        components |= model.pop("$defs", {}) | {request.__name__: model}
        body = {"application/json": {"schema": {"$ref": f"#/components/schemas/{request.__name__}"}}}
        schema["paths"][path]["post"]["requestBody"] = {"required": True, "content": body}
    return schema
