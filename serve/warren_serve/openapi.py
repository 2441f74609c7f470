"""The OpenAPI description: two routes read their bodies themselves, so FastAPI cannot know their schemas."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from warren_serve.protocol import ChatRequest, CompletionRequest, GenerationFields

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
_USAGE = {
    "type": "object",
    "required": ["prompt_tokens", "completion_tokens", "total_tokens"],
    "additionalProperties": {"type": "integer"},
}


def _answer_of(kind: str, told: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an answer whose choices tell in field `told` what the model said."""
    choice = {
        "type": "object",
        "required": ["index", told, "finish_reason", "logprobs"],
        "properties": {
            "index": {"type": "integer"},
            told: schema,
            "finish_reason": {"enum": ["stop", "length"]},
            "logprobs": {"type": ["object", "null"]},
        },
    }
    properties = {
        "id": {"type": "string"},
        "object": {"const": kind},
        "created": {"type": "integer"},
        "model": {"type": "string"},
        "system_fingerprint": {"type": "string", "description": "The release's version."},
        "choices": {"type": "array", "items": choice},
        "usage": _USAGE,
    }
    return {"type": "object", "required": list(properties), "properties": properties}


_MESSAGE = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {"role": {"const": "assistant"}, "content": {"type": "string"}},
}
_CHAT_ANSWER = _answer_of("chat.completion", "message", _MESSAGE)
_TEXT_ANSWER = _answer_of("text_completion", "text", {"type": "string"})
_ASKING: Mapping[str, tuple[type[GenerationFields], str]] = {
    "/v1/chat/completions": (ChatRequest, "ChatCompletion"),
    "/v1/completions": (CompletionRequest, "Completion"),
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
    """Make the application describe all its routes in full."""

    def openapi() -> dict[str, Any]:
        if not app.openapi_schema:
            app.openapi_schema = _schema(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _schema(app: FastAPI) -> dict[str, Any]:
    schema = get_openapi(title=app.title, version="1", routes=app.routes)
    components = schema.setdefault("components", {}).setdefault("schemas", {})
    components |= {"Error": _ERROR, "ChatCompletion": _CHAT_ANSWER, "Completion": _TEXT_ANSWER}
    error = {"application/json": {"schema": _reference("Error")}}
    for path, methods in schema["paths"].items():
        for operation in methods.values():
            known = operation["responses"]
            known.pop("422", None)
            used = _ERRORS if path in _ASKING else {c: _ERRORS[c] for c in ("401", "404", "503")}
            known |= {code: {"description": text, "content": error} for code, text in used.items()}
    for path, (request, answer) in _ASKING.items():
        model = request.model_json_schema(ref_template="#/components/schemas/{model}")
        components |= model.pop("$defs", {}) | {request.__name__: model}
        operation = schema["paths"][path]["post"]
        body = {"application/json": {"schema": _reference(request.__name__)}}
        operation["requestBody"] = {"required": True, "content": body}
        operation["responses"]["200"]["content"] = {
            "application/json": {"schema": _reference(answer)},
            "text/event-stream": {},
        }
    return schema


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}
