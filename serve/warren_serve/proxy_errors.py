"""Translation of Serve's proxy errors into ASGI messages."""

import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)


class Disconnects:
    """ASGI middleware: sends a `http.disconnect` message when a client leaves, as ASGI specifies.

    If the client leaves while its body is read, Serve raises one of Ray's errors instead, because it cancels the task
    that fetches the body from the proxy.

    Args:
        app: The application behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def receive_or_end() -> Message:
            try:
                return await receive()
            except Exception as error:  # of any type: no more of the request will come
                logger.info("the request ended before its body: %r", error)
                return {"type": "http.disconnect"}

        await self._app(scope, receive_or_end, send)
