"""Admission of requests by API keys and their limits, before a byte of the body is read."""

import math
import uuid
from collections.abc import Awaitable
from typing import Protocol

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from warren_serve.auth import KeyRing
from warren_serve.errors import ApiError, bad_request, overloaded, rate_limited
from warren_serve.ratelimit import Accounts, RateLimitDecision, RateLimits

# All other paths need a key, so that a new route is closed until somebody adds it here.
_OPEN = frozenset({"/", "/healthz", "/readyz", "/openapi.json"})
_OPEN_FOLDER = "/page/"
_SHOWN_CHARS = 12  # of a digest: enough to tell keys apart, too few to guess one
_LEASE = "rate_limit_lease"  # in the ASGI scope's state


class SharedAccounts(Protocol):
    """`Accounts` in this process or in another."""

    def enter(self, key: str, lease: str) -> Awaitable[RateLimitDecision]:
        """See `Accounts.enter`."""
        ...

    def charge(self, key: str, lease: str, num_tokens: int) -> Awaitable[RateLimitDecision]:
        """See `Accounts.charge`."""
        ...

    def leave(self, key: str, lease: str, num_used_tokens: int = 0) -> None:
        """See `Accounts.leave`; does not wait and never raises."""
        ...

    def debit(self, key: str, num_tokens: int) -> None:
        """See `Accounts.debit`; does not wait and never raises."""
        ...


class OwnAccounts:
    """Accounts of this process alone.

    Args:
        limits: The limits of every key.
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


class RateLimitLease:
    """One request's share of its key's limits.

    Attributes:
        key: The key's digest, or `anonymous`.
    """

    def __init__(self, key: str, accounts: SharedAccounts, limits: RateLimits) -> None:
        self.key = key
        self._accounts, self._limits = accounts, limits
        self._name: str | None = None
        self._num_used_tokens = 0

    async def enter(self) -> None:
        """Count the request.

        Raises:
            ApiError: 429.
        """
        # The lease has a name before the call, so that a request that is cancelled meanwhile still closes it.
        self._name = uuid.uuid4().hex
        decision = await self._accounts.enter(self.key, self._name)
        if not decision.is_allowed:
            self._name = None
            raise _refusal(decision, self._limits)

    async def charge(self, num_tokens: int) -> None:
        """Reserve the most tokens that the request can use.

        Raises:
            ApiError: 429; 400 if a key may never use that many.
        """
        most = self._limits.tokens_per_minute
        if most is None or self._name is None:
            return
        if num_tokens > most:
            message = f"The request can use {num_tokens} tokens; a key may use {most} in a minute. Lower max_tokens."
            raise bad_request(message, "token_budget_exceeded", "max_tokens")
        decision = await self._accounts.charge(self.key, self._name, num_tokens)
        if not decision.is_allowed:
            raise _refusal(decision, self._limits)

    def record_usage(self, num_tokens: int) -> None:
        """Add tokens that were used; `close` gives the others back."""
        self._num_used_tokens += num_tokens

    def close(self) -> None:
        """End the request and give back the tokens that were not used."""
        if self._name is not None:
            self._accounts.leave(self.key, self._name, self._num_used_tokens)


class Admission:
    """ASGI middleware: admits a request by its key and the key's limits, and closes its lease whatever happens.

    Args:
        app: The application behind it.
        keys: The keys that are admitted.
        accounts: What each key has used.
        limits: What each key may use.
        max_requests: Requests of all keys at the same time; more are refused.
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
        lease = RateLimitLease(key, self._accounts, self._limits)
        scope.setdefault("state", {})[_LEASE] = lease
        if scope["method"] != "POST":  # reading the model's card or the metrics is not counted
            await self._app(scope, receive, send)
            return
        # Before the key's limits, because those may need a call to another process.
        if self._num_requests >= self._max_requests:
            raise overloaded("Too many requests are open; try again shortly.")
        self._num_requests += 1
        try:
            await lease.enter()
            await self._app(scope, receive, send)
        finally:
            self._num_requests -= 1
            lease.close()


def lease_of(scope: Scope) -> RateLimitLease:
    """Return the lease of an admitted request."""
    lease: RateLimitLease = scope["state"][_LEASE]
    return lease


def key_of(scope: Scope) -> str | None:
    """Return the start of the digest of a request's key; None before or without admission."""
    lease: RateLimitLease | None = scope.get("state", {}).get(_LEASE)
    return lease.key[:_SHOWN_CHARS] if lease else None


def _is_open(scope: Scope) -> bool:
    """Decide by the path below the application's route prefix (`root_path`), as the router does."""
    root, path = scope.get("root_path", ""), scope["path"]
    if root and path.startswith(f"{root}/"):
        path = path[len(root) :]
    return scope["method"] == "OPTIONS" or path in _OPEN or path.startswith(_OPEN_FOLDER)


def _refusal(decision: RateLimitDecision, limits: RateLimits) -> ApiError:
    most = getattr(limits, decision.limit)
    what = decision.limit.replace("_", " ")
    return rate_limited(f"A key may have {most} {what}; try again later.", math.ceil(decision.wait_s))
