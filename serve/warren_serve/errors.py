"""Errors in OpenAI's form: `{"error": {"message", "type", "param", "code"}}`."""

from collections.abc import MutableMapping
from functools import partial
from typing import Any

from starlette.responses import JSONResponse

from warren.errors import WarrenError
from warren_serve.response_models import ErrorDetail, ErrorResponse

RETRY_AFTER_S = 1
_ERROR_CODE = "error_code"  # in the ASGI scope's state
_MAX_MESSAGE_CHARS = 500
_MAX_NAME_CHARS = 120
CLIENT_CLOSED_REQUEST = 499  # nginx's status; only the log shows it


def clipped(text: str, most: int = _MAX_NAME_CHARS) -> str:
    """Shorten a client's text before it is sent back or logged."""
    return text if len(text) <= most else f"{text[:most]}…"


class ApiError(WarrenError):
    """A response other than 200. Its message is for the client, so it must not reveal anything of the server's inside.

    Message and param are clipped here, because both may contain the client's text.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        kind: str = "invalid_request_error",
        headers: dict[str, str] | None = None,
    ) -> None:
        self.message = clipped(message, _MAX_MESSAGE_CHARS)
        super().__init__(self.message)
        self.status = status
        self.code = code
        self.param = param if param is None else clipped(param)
        self.kind = kind
        self.headers = headers or {}

    def __reduce__(self) -> Any:
        build = partial(ApiError, code=self.code, param=self.param, kind=self.kind, headers=self.headers)
        return build, (self.status, self.message)

    def body(self) -> ErrorResponse:
        """Return the response's body."""
        return ErrorResponse(error=ErrorDetail(message=self.message, type=self.kind, param=self.param, code=self.code))

    def response(self) -> JSONResponse:
        """Return the HTTP response."""
        return JSONResponse(self.body().model_dump(), self.status, self.headers)


def bad_request(message: str, code: str, param: str | None = None) -> ApiError:
    """400: the request itself is wrong."""
    return ApiError(400, message, code=code, param=param)


def too_large(limit_bytes: int) -> ApiError:
    """413: the body is longer than this endpoint reads."""
    return ApiError(
        413,
        f"The request body is larger than {limit_bytes} bytes.",
        code="request_too_large",
        headers={"connection": "close"},
    )


def overloaded(message: str) -> ApiError:
    """429: all slots are taken."""
    return ApiError(
        429, message, code="overloaded", kind="rate_limit_error", headers={"retry-after": str(RETRY_AFTER_S)}
    )


def rate_limited(message: str, wait_s: int) -> ApiError:
    """429: the key has reached a limit."""
    headers = {"retry-after": str(wait_s)}
    return ApiError(429, message, code="rate_limit_exceeded", kind="rate_limit_error", headers=headers)


def unavailable(message: str) -> ApiError:
    """503: this replica does not answer, another one may."""
    return ApiError(503, message, code="unavailable", kind="server_error", headers={"retry-after": str(RETRY_AFTER_S)})


def deadline_exceeded(timeout_s: float) -> ApiError:
    """504: the answer took longer than the deadline."""
    return ApiError(
        504,
        f"The answer was not complete within {timeout_s:g} s.",
        code="deadline_exceeded",
        kind="timeout_error",
    )


def internal_error() -> ApiError:
    """500: the log has the details, under the request id."""
    return ApiError(
        500,
        "The server had an error; quote the x-request-id header when you report it.",
        code="internal_error",
        kind="server_error",
    )


def record_error(scope: MutableMapping[str, Any], error: ApiError) -> None:
    """Remember in a request's ASGI scope why it was refused, for metrics and the access log."""
    scope.setdefault("state", {})[_ERROR_CODE] = error.code


def error_of(scope: MutableMapping[str, Any]) -> str | None:
    """Return the code of the error that a request ended with; None if it had none."""
    code: str | None = scope.get("state", {}).get(_ERROR_CODE)
    return code
