"""The chat page: three small files and a vendored component. Nothing is loaded from other hosts."""

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import FileResponse, RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from warren_serve.errors import ApiError

_FOLDER = Path(__file__).parent / "page"
_FILES = {
    "chat.css": "text/css",
    "chat.js": "text/javascript",
    "deep-chat/deepChat.bundle.js": "text/javascript",
    "deep-chat/LICENSE": "text/plain",
}
# 'unsafe-inline' is needed because the component writes its styles into its shadow tree.
_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class SlashBehindPrefix:
    """ASGI middleware: redirects from an application's route prefix to the page, which is at the prefix and a slash.

    The target is relative, so it depends neither on the Host header nor on proxies in front of the endpoint.

    Args:
        app: The application behind it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        root = scope.get("root_path", "")
        if scope["type"] == "http" and root and scope["path"] == root and scope["method"] in ("GET", "HEAD"):
            await RedirectResponse(f"{root.rpartition('/')[2]}/")(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def page_routes() -> APIRouter:
    """Return the routes of the chat page."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def index() -> FileResponse:
        return FileResponse(_FOLDER / "index.html", media_type="text/html", headers=_HEADERS)

    @router.get("/page/{name:path}")
    async def file(name: str) -> FileResponse:
        if name not in _FILES:  # a list, so that no path can lead elsewhere
            raise ApiError(404, f"There is no {name[:200]!r} here.", code="not_found")
        return FileResponse(_FOLDER / name, media_type=_FILES[name], headers=_HEADERS)

    return router
