"""What one key may use: requests and tokens in a minute, and requests at a time. Pure accounting with a given clock."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

_MINUTE_S = 60.0
_ROUNDING_S = 1e-6
_MAX_IDLE_ACCOUNTS = 10_000


@dataclass(frozen=True)
class RateLimits:
    """Of every key alike; None is no limit.

    Attributes:
        requests_per_minute: A whole minute's worth may come at once.
        tokens_per_minute: Of prompts and answers together.
        concurrent_requests: From the first byte to the last of the answer.
        lease_s: A request that was not closed (its process died) stops counting after so long.
    """

    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrent_requests: int | None
    lease_s: float

    @property
    def has_any(self) -> bool:
        """Whether there is something to count."""
        return any((self.requests_per_minute, self.tokens_per_minute, self.concurrent_requests))


@dataclass(frozen=True)
class RateLimitDecision:
    """Whether something may go on.

    Attributes:
        limit: Name of the limit that was reached, a field of `RateLimits`; empty for yes.
        wait_s: When to ask again.
    """

    wait_s: float = 0.0
    limit: str = ""


@dataclass
class _Lease:
    """One open request."""

    ends_at_s: float
    num_charged_tokens: int = 0


@dataclass
class _Account:
    """The times at which each budget would be full again (GCRA: ITU-T I.371), and the open requests.

    `closed` remembers leases that were closed before they were opened, so that the late opening is ignored.
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

    The caller names its lease before it asks for it. So it can close the lease although it never heard the answer:
    its client may have left meanwhile, or the message may be late. What a request was charged is kept here, with its
    lease, for the same reason.

    Args:
        limits: Of every key.
        clock: Seconds that only grow.
    """

    def __init__(self, limits: RateLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._accounts: dict[str, _Account] = {}

    def enter(self, key: str, lease: str) -> RateLimitDecision:
        """Count one request and open its lease; a refused request costs nothing, and one that was closed is ignored."""
        now = self._clock()
        account = self._account(key, now)
        account.forget_what_ended(now)
        if lease in account.closed:
            return RateLimitDecision()
        most = self._limits.concurrent_requests
        if most is not None and len(account.leases) >= most:
            return RateLimitDecision(1.0, "concurrent_requests")  # nobody knows when one of them ends
        if rate := self._limits.requests_per_minute:
            full_at = max(account.requests_full_at_s, now) + _MINUTE_S / rate
            if full_at - now > _MINUTE_S + _ROUNDING_S:
                return RateLimitDecision(full_at - now - _MINUTE_S, "requests_per_minute")
            account.requests_full_at_s = full_at
        account.leases[lease] = _Lease(now + self._limits.lease_s)
        return RateLimitDecision()

    def charge(self, key: str, lease: str, num_tokens: int) -> RateLimitDecision:
        """Take tokens from the key's budget, all or none; what is not used comes back with `leave`."""
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
        # These accounts may be younger than the request: they are lost when their process is.
        opened = account.leases.setdefault(lease, _Lease(now + self._limits.lease_s))
        opened.num_charged_tokens += num_tokens
        return RateLimitDecision()

    def leave(self, key: str, lease: str, num_used_tokens: int = 0) -> None:
        """Close a lease and give back what was charged and not used. Harmless when repeated."""
        now = self._clock()
        account = self._account(key, now)
        opened = account.leases.pop(lease, None)
        if opened is None:
            account.closed[lease] = now + self._limits.lease_s
        elif (rate := self._limits.tokens_per_minute) and num_used_tokens < opened.num_charged_tokens:
            account.tokens_full_at_s -= (opened.num_charged_tokens - num_used_tokens) * _MINUTE_S / rate

    def debit(self, key: str, num_tokens: int) -> None:
        """Take tokens that were used already, also more than there are: the key then waits the longer."""
        if rate := self._limits.tokens_per_minute:
            now = self._clock()
            account = self._account(key, now)
            account.tokens_full_at_s = max(account.tokens_full_at_s, now) + num_tokens * _MINUTE_S / rate

    def _account(self, key: str, now: float) -> _Account:
        if key not in self._accounts and len(self._accounts) >= _MAX_IDLE_ACCOUNTS:
            self._accounts = {name: one for name, one in self._accounts.items() if not one.is_idle(now)}
        return self._accounts.setdefault(key, _Account())
