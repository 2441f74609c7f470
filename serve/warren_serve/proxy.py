"""What Serve's proxy hands to the application, in ASGI's own terms."""

import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)


class Disconnects:
    """ASGI middleware: a client that leaves is a `http.disconnect` message, as ASGI says.

    Serve raises an error of Ray's instead where the client leaves while its body is read: the task that fetches the
    body from the proxy was cancelled.

    Args:
        app: What is behind it.
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
            except Exception as error:  # whatever it is, no more of the request will come
                logger.info("the request ended before its body: %r", error)
                return {"type": "http.disconnect"}

        await self._app(scope, receive_or_end, send)
