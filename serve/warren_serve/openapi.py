"""The OpenAPI description: the chat route reads its body itself, so FastAPI cannot know its schema."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from warren_serve.wire import ChatRequest

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}
_ANSWER = {
    "type": "object",
    "required": ["id", "object", "created", "model", "system_fingerprint", "choices", "usage"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "chat.completion"},
        "created": {"type": "integer"},
        "model": {"type": "string"},
        "system_fingerprint": {"type": "string", "description": "The release's version."},
        "choices": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["index", "message", "finish_reason", "logprobs"],
                "properties": {
                    "index": {"type": "integer"},
                    "message": {
                        "type": "object",
                        "required": ["role", "content"],
                        "properties": {"role": {"const": "assistant"}, "content": {"type": "string"}},
                    },
                    "finish_reason": {"enum": ["stop", "length"]},
                    "logprobs": {"type": ["object", "null"]},
                },
            },
        },
        "usage": {
            "type": "object",
            "required": ["prompt_tokens", "completion_tokens", "total_tokens"],
            "additionalProperties": {"type": "integer"},
        },
    },
}
_ERRORS = {
    "400": "Something in the request is wrong; `param` names it.",
    "401": "A valid API key is needed.",
    "404": "The model is not served here.",
    "408": "The body took too long to arrive.",
    "413": "The body is too large.",
    "415": "The body is not JSON.",
    "429": "All slots are taken; see Retry-After.",
    "500": "The server had an error.",
    "503": "This replica does not answer; see Retry-After.",
    "504": "The answer took too long.",
}


def describe(app: FastAPI) -> None:
    """Make the application describe its chat route in full."""

    def openapi() -> dict[str, Any]:
        if not app.openapi_schema:
            app.openapi_schema = _schema(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _schema(app: FastAPI) -> dict[str, Any]:
    schema = get_openapi(title=app.title, version="1", routes=app.routes)
    request = ChatRequest.model_json_schema(ref_template="#/components/schemas/{model}")
    components = schema.setdefault("components", {}).setdefault("schemas", {})
    components |= request.pop("$defs", {}) | {"ChatRequest": request, "Error": _ERROR, "ChatCompletion": _ANSWER}
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    for path, methods in schema["paths"].items():
        for operation in methods.values():
            known = operation["responses"]
            known.pop("422", None)
            used = _ERRORS if path == "/v1/chat/completions" else {c: _ERRORS[c] for c in ("401", "404", "503")}
            known |= {code: {"description": text, "content": error} for code, text in used.items()}
    chat = schema["paths"]["/v1/chat/completions"]["post"]
    reference = {"$ref": "#/components/schemas/ChatRequest"}
    chat["requestBody"] = {"required": True, "content": {"application/json": {"schema": reference}}}
    answer = {"$ref": "#/components/schemas/ChatCompletion"}
    chat["responses"]["200"]["content"] = {
        "application/json": {"schema": answer},
        "text/event-stream": {"schema": {"type": "string"}},
    }
    return schema
