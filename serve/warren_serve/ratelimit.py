"""Rate limits of API keys: requests and tokens per minute, and requests at a time. Pure accounting with a clock."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

_MINUTE_S = 60.0
_ROUNDING_S = 1e-6
_MAX_IDLE_ACCOUNTS = 10_000


@dataclass(frozen=True)
class RateLimits:
    """The limits of every key; None sets no limit.

    Attributes:
        requests_per_minute: A whole minute's requests may come at once.
        tokens_per_minute: Tokens of prompts and answers together.
        concurrent_requests: Requests at the same time.
        lease_s: After this time, a request that was not closed (its process died) no longer counts.
    """

    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrent_requests: int | None
    lease_s: float

    @property
    def has_any(self) -> bool:
        """Whether any limit is set."""
        return any((self.requests_per_minute, self.tokens_per_minute, self.concurrent_requests))


@dataclass(frozen=True)
class RateLimitDecision:
    """Whether a request may go on.

    Attributes:
        wait_s: How long to wait before asking again.
        limit: The limit that was reached, a field of `RateLimits`; empty if the request may go on.
    """

    wait_s: float = 0.0
    limit: str = ""

    @property
    def is_allowed(self) -> bool:
        """Whether the request may go on."""
        return not self.limit


@dataclass
class _Lease:
    """One open request."""

    ends_at_s: float
    num_charged_tokens: int = 0


@dataclass
class _Account:
    """The times when each budget will be full again (GCRA: ITU-T I.371), and the open requests.

    `closed` has leases that were closed before they were opened, so that a late opening is ignored.
    """

    requests_full_at_s: float = 0.0
    tokens_full_at_s: float = 0.0
    leases: dict[str, _Lease] = field(default_factory=dict)
    closed: dict[str, float] = field(default_factory=dict)

    def is_idle(self, now: float) -> bool:
        return not self.leases and max(self.requests_full_at_s, self.tokens_full_at_s) <= now

    def forget_what_ended(self, now: float) -> None:
        self.leases = {name: lease for name, lease in self.leases.items() if lease.ends_at_s > now}
        self.closed = {name: end for name, end in self.closed.items() if end > now}


class Accounts:
    """The accounts of all keys. Not thread-safe: one event loop, or one actor, owns them.

    The caller chooses a lease's name before it asks for the lease. So it can close a lease whose grant it never
    received, because its client left or the message is late. For the same reason the tokens that a request was charged
    are kept here, with its lease.

    Args:
        limits: The limits of every key.
        clock: A monotonic clock in seconds.
    """

    def __init__(self, limits: RateLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._accounts: dict[str, _Account] = {}

    def enter(self, key: str, lease: str) -> RateLimitDecision:
        """Count one request and open its lease. A refused request costs nothing; a closed lease is not opened again."""
        now = self._clock()
        account = self._account(key, now)
        account.forget_what_ended(now)
        if lease in account.closed:
            return RateLimitDecision()
        most = self._limits.concurrent_requests
        if most is not None and len(account.leases) >= most:
            return RateLimitDecision(1.0, "concurrent_requests")  # when one of them ends is unknown
        if rate := self._limits.requests_per_minute:
            full_at = max(account.requests_full_at_s, now) + _MINUTE_S / rate
            if full_at - now > _MINUTE_S + _ROUNDING_S:
                return RateLimitDecision(full_at - now - _MINUTE_S, "requests_per_minute")
            account.requests_full_at_s = full_at
        account.leases[lease] = _Lease(now + self._limits.lease_s)
        return RateLimitDecision()

    def charge(self, key: str, lease: str, num_tokens: int) -> RateLimitDecision:
        """Take tokens from the key's budget, all or none; `leave` gives back those that were not used."""
        if not (rate := self._limits.tokens_per_minute):
            return RateLimitDecision()
        now = self._clock()
        account = self._account(key, now)
        if lease in account.closed:
            return RateLimitDecision()
        full_at = max(account.tokens_full_at_s, now) + num_tokens * _MINUTE_S / rate
        if full_at - now > _MINUTE_S + _ROUNDING_S:
            return RateLimitDecision(full_at - now - _MINUTE_S, "tokens_per_minute")
        account.tokens_full_at_s = full_at
        # The lease may be unknown, because accounts are lost with their process.
        opened = account.leases.setdefault(lease, _Lease(now + self._limits.lease_s))
        opened.num_charged_tokens += num_tokens
        return RateLimitDecision()

    def leave(self, key: str, lease: str, num_used_tokens: int = 0) -> None:
        """Close a lease and give back the tokens that were charged and not used. Harmless when repeated."""
        now = self._clock()
        account = self._account(key, now)
        opened = account.leases.pop(lease, None)
        if opened is None:
            account.closed[lease] = now + self._limits.lease_s
        elif (rate := self._limits.tokens_per_minute) and num_used_tokens < opened.num_charged_tokens:
            account.tokens_full_at_s -= (opened.num_charged_tokens - num_used_tokens) * _MINUTE_S / rate

    def debit(self, key: str, num_tokens: int) -> None:
        """Take tokens that were used already. They may exceed the budget; the key then waits longer."""
        if rate := self._limits.tokens_per_minute:
            now = self._clock()
            account = self._account(key, now)
            account.tokens_full_at_s = max(account.tokens_full_at_s, now) + num_tokens * _MINUTE_S / rate

    def _account(self, key: str, now: float) -> _Account:
        # Full budgets and no open request are what a new account has, so an idle account can be forgotten.
        if key not in self._accounts and len(self._accounts) >= _MAX_IDLE_ACCOUNTS:
            self._accounts = {name: one for name, one in self._accounts.items() if not one.is_idle(now)}
        return self._accounts.setdefault(key, _Account())
