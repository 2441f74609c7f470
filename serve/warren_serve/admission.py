"""Who may ask, and how much: keys and limits, before a byte of the body is read."""

import math
import uuid
from collections.abc import Awaitable
from typing import Protocol

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from warren_serve.auth import KeyRing
from warren_serve.errors import ApiError, bad_request, overloaded, rate_limited
from warren_serve.ratelimit import Accounts, RateLimitDecision, RateLimits

# All else needs a key: a route that is added, or a path that nobody thought of, is closed until it is named here.
_OPEN = frozenset({"/", "/healthz", "/readyz", "/openapi.json"})
_OPEN_FOLDER = "/page/"
_SHOWN_CHARS = 12  # of a digest: enough to tell keys apart, useless to guess one
_VISIT = "visit"  # in the ASGI scope's state


class SharedAccounts(Protocol):
    """`Accounts`, wherever they are kept."""

    def enter(self, key: str, lease: str) -> Awaitable[RateLimitDecision]:
        """See `Accounts.enter`."""
        ...

    def charge(self, key: str, lease: str, num_tokens: int) -> Awaitable[RateLimitDecision]:
        """See `Accounts.charge`."""
        ...

    def leave(self, key: str, lease: str, num_used_tokens: int = 0) -> None:
        """See `Accounts.leave`; returns before it is done, and never raises."""
        ...

    def debit(self, key: str, num_tokens: int) -> None:
        """See `Accounts.debit`; returns before it is done, and never raises."""
        ...


class OwnAccounts:
    """Accounts of this process alone.

    Args:
        limits: Of every key.
    """

    def __init__(self, limits: RateLimits) -> None:
        self._accounts = Accounts(limits)

    async def enter(self, key: str, lease: str) -> RateLimitDecision:
        """See `Accounts.enter`."""
        return self._accounts.enter(key, lease)

    async def charge(self, key: str, lease: str, num_tokens: int) -> RateLimitDecision:
        """See `Accounts.charge`."""
        return self._accounts.charge(key, lease, num_tokens)

    def leave(self, key: str, lease: str, num_used_tokens: int = 0) -> None:
        """See `Accounts.leave`."""
        self._accounts.leave(key, lease, num_used_tokens)

    def debit(self, key: str, num_tokens: int) -> None:
        """See `Accounts.debit`."""
        self._accounts.debit(key, num_tokens)


class Visit:
    """One request and what it holds of its key's limits.

    Attributes:
        key: The key's digest, or `anonymous`.
    """

    def __init__(self, key: str, accounts: SharedAccounts, limits: RateLimits) -> None:
        self.key = key
        self._accounts, self._limits = accounts, limits
        self._lease: str | None = None
        self._num_used = 0

    async def enter(self) -> None:
        """Take a place.

        Raises:
            ApiError: 429.
        """
        # Named before it is asked for: a request that is cancelled meanwhile closes it all the same.
        self._lease = uuid.uuid4().hex
        decision = await self._accounts.enter(self.key, self._lease)
        if decision.limit:
            self._lease = None
            raise _refusal(decision, self._limits)

    async def charge(self, num_tokens: int) -> None:
        """Reserve what the request can use at most.

        Raises:
            ApiError: 429; 400 when it would never fit.
        """
        most = self._limits.tokens_per_minute
        if most is None or self._lease is None:
            return
        if num_tokens > most:
            message = f"The request can use {num_tokens} tokens; a key may use {most} in a minute."
            raise bad_request(message, "token_budget_exceeded", "max_tokens")
        decision = await self._accounts.charge(self.key, self._lease, num_tokens)
        if decision.limit:
            raise _refusal(decision, self._limits)

    def use(self, num_tokens: int) -> None:
        """Note what was in fact used; the rest goes back to the key."""
        self._num_used += num_tokens

    def close(self) -> None:
        """Give back the place and the unused tokens."""
        if self._lease is not None:
            self._accounts.leave(self.key, self._lease, self._num_used)


class Admission:
    """ASGI middleware: lets a request in by its key and the key's limits, and closes its visit whatever happens.

    Args:
        app: What is behind it.
        keys: Who may ask.
        accounts: What each has used.
        limits: What each may use.
        max_requests: More at a time, of all keys together, are refused.
    """

    def __init__(
        self, app: ASGIApp, keys: KeyRing, accounts: SharedAccounts, limits: RateLimits, max_requests: int
    ) -> None:
        self._app = app
        self._keys, self._accounts, self._limits = keys, accounts, limits
        self._max_requests, self._num_requests = max_requests, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or _is_open(scope):
            await self._app(scope, receive, send)
            return
        key = self._keys.check(Headers(scope=scope).get("authorization"))
        visit = Visit(key, self._accounts, self._limits)
        scope.setdefault("state", {})[_VISIT] = visit
        if scope["method"] != "POST":  # looking at the model or the metrics is not counted
            await self._app(scope, receive, send)
            return
        if self._num_requests >= self._max_requests:
            raise overloaded("Too many requests are open; try again shortly.")
        self._num_requests += 1
        try:
            await visit.enter()
            await self._app(scope, receive, send)
        finally:
            self._num_requests -= 1
            visit.close()


def visit_of(scope: Scope) -> Visit:
    """Return the visit that a guarded request was admitted with."""
    visit: Visit = scope["state"][_VISIT]
    return visit


def key_of(scope: Scope) -> str | None:
    """Return the start of the digest of the key that a request came with; None before or without admission."""
    visit: Visit | None = scope.get("state", {}).get(_VISIT)
    return visit.key[:_SHOWN_CHARS] if visit else None


def _is_open(scope: Scope) -> bool:
    """Tell by the path below the application's route prefix, which is `root_path`, as the router does."""
    root, path = scope.get("root_path", ""), scope["path"]
    if root and path.startswith(f"{root}/"):
        path = path[len(root) :]
    return scope["method"] == "OPTIONS" or path in _OPEN or path.startswith(_OPEN_FOLDER)


def _refusal(decision: RateLimitDecision, limits: RateLimits) -> ApiError:
    most = getattr(limits, decision.limit)
    what = decision.limit.replace("_", " ")
    return rate_limited(f"A key may have {most} {what}; try again later.", math.ceil(decision.wait_s))
