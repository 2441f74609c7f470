"""Errors as OpenAI's clients know them: `{"error": {"message", "type", "param", "code"}}`."""

from functools import partial
from typing import Any

from starlette.responses import JSONResponse

from warren.errors import WarrenError

RETRY_AFTER_S = 1
_MAX_MESSAGE_CHARS = 500
_MAX_NAME_CHARS = 120
CLIENT_CLOSED_REQUEST = 499  # nginx's; nobody is there to read it, but the log shows it


def clipped(text: str, most: int = _MAX_NAME_CHARS) -> str:
    """Shorten what a client wrote before it is shown or logged."""
    return text if len(text) <= most else f"{text[:most]}…"


class ApiError(WarrenError):
    """An answer other than 200. The message is for the client: it names nothing of the server's inside.

    Message and param are clipped here, because both may hold what the client wrote.
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

    def body(self) -> dict[str, Any]:
        """Return the JSON of OpenAI's error object."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> JSONResponse:
        """Return the HTTP answer."""
        return JSONResponse(self.body(), self.status, self.headers)


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
    """429: nothing is free now."""
    return ApiError(
        429, message, code="overloaded", kind="rate_limit_error", headers={"retry-after": str(RETRY_AFTER_S)}
    )


def rate_limited(message: str, wait_s: int) -> ApiError:
    """429: this key has used what it may for now."""
    headers = {"retry-after": str(wait_s)}
    return ApiError(429, message, code="rate_limit_exceeded", kind="rate_limit_error", headers=headers)


def unavailable(message: str) -> ApiError:
    """503: this replica does not answer; another may."""
    return ApiError(503, message, code="unavailable", kind="server_error", headers={"retry-after": str(RETRY_AFTER_S)})


def deadline_exceeded(timeout_s: float) -> ApiError:
    """504: the answer took longer than it may."""
    return ApiError(
        504,
        f"The answer was not complete within {timeout_s:g} s.",
        code="deadline_exceeded",
        kind="timeout_error",
    )


def internal_error() -> ApiError:
    """500: details are in the log, under the request id."""
    return ApiError(
        500,
        "The server had an error; quote the x-request-id header when you report it.",
        code="internal_error",
        kind="server_error",
    )
