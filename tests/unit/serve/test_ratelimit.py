"""A key's budgets: what a minute's worth means, what comes back, what a lost process leaves behind."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warren_serve.ratelimit import Accounts, RateLimitDecision, RateLimits


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Book(Accounts):
    """Accounts whose leases are numbered here."""

    def __init__(self, limits: RateLimits, clock: Clock) -> None:
        super().__init__(limits, clock)
        self._names = map(str, itertools.count())

    def ask(self, key: str) -> RateLimitDecision:
        return self.enter(key, next(self._names))


def accounts(**limits: int) -> tuple[Book, Clock]:
    clock = Clock()
    none = dict.fromkeys(("requests_per_minute", "tokens_per_minute", "concurrent_requests"))
    return Book(RateLimits(**none | limits, lease_s=100.0), clock), clock


@pytest.mark.parametrize("rate", [1, 3, 7, 60, 1000])
def test_a_minutes_requests_may_come_at_once_and_then_at_the_rate(rate: int) -> None:
    book, clock = accounts(requests_per_minute=rate)
    assert [book.ask("a").limit for _ in range(rate)] == [""] * rate
    refused = book.ask("a")
    assert refused.limit == "requests_per_minute"
    assert 0 < refused.wait_s <= 60 / rate + 1e-6
    clock.now += refused.wait_s
    assert not book.ask("a").limit
    assert book.ask("a").limit
    assert not book.ask("b").limit, "another key has its own budget"


@given(st.integers(1, 20), st.lists(st.floats(0, 30), max_size=60))
def test_no_longer_stretch_gets_more_than_its_share(rate: int, pauses: list[float]) -> None:
    book, clock = accounts(requests_per_minute=rate)
    start, admitted = clock.now, 0
    for pause in pauses:
        clock.now += pause
        decision = book.ask("a")
        admitted += not decision.limit
        assert (decision.wait_s > 0) == bool(decision.limit)
        assert admitted <= rate + (clock.now - start) * rate / 60 + 1e-3


def test_tokens_are_taken_all_or_none_and_the_unused_come_back() -> None:
    book, clock = accounts(tokens_per_minute=600)
    book.enter("a", "x")
    assert not book.charge("a", "x", 500).limit
    refused = book.charge("a", "x", 200)
    assert refused.limit == "tokens_per_minute"
    assert refused.wait_s == pytest.approx(10)
    assert not book.charge("a", "x", 100).limit, "a refused charge takes nothing"
    book.leave("a", "x", 400)
    book.leave("a", "x", 0)
    assert book.charge("a", "y", 201).limit, "they come back once"
    assert not book.charge("a", "y", 200).limit
    assert book.charge("a", "y", 1).limit
    clock.now += 60
    assert not book.charge("a", "y", 600).limit


def test_tokens_that_were_used_already_are_taken_also_beyond_the_budget() -> None:
    book, clock = accounts(tokens_per_minute=600)
    book.debit("a", 500)
    assert book.charge("a", "x", 101).limit
    book.debit("a", 400)
    assert book.charge("a", "x", 1).wait_s == pytest.approx(30.1)
    clock.now += 90
    assert not book.charge("a", "x", 600).limit


def test_places_are_freed_by_leaving_and_by_a_process_that_never_does() -> None:
    book, clock = accounts(concurrent_requests=2)
    assert not any(book.enter("a", lease).limit for lease in ("x", "y"))
    assert book.ask("a").limit == "concurrent_requests"
    book.leave("a", "x")
    book.leave("a", "x")
    assert not book.ask("a").limit
    assert book.ask("a").limit
    clock.now += 101
    assert not book.ask("a").limit
    book.leave("a", "y")
    book.leave("unknown", "z")


def test_a_lease_that_was_closed_before_it_was_opened_stays_closed() -> None:
    """A request that is cancelled closes its lease at once; the message that opens it may still be on the way."""
    book, clock = accounts(concurrent_requests=1, tokens_per_minute=600)
    book.leave("a", "late")
    assert not book.enter("a", "late").limit
    assert not book.charge("a", "late", 600).limit
    assert not book.enter("a", "x").limit, "the place is free"
    assert not book.charge("a", "x", 600).limit, "and so are the tokens"
    clock.now += 101
    book.leave("a", "x")
    book.ask("a")
    clock.now += 101
    book.ask("a")
    assert not book._accounts["a"].closed, "what is remembered is forgotten in time"


def test_accounts_that_lost_their_memory_learn_of_a_request_by_its_charge() -> None:
    book, _ = accounts(concurrent_requests=1, tokens_per_minute=600)
    assert not book.charge("a", "older", 600).limit
    assert book.ask("a").limit == "concurrent_requests"
    book.leave("a", "older", 100)
    assert not book.charge("a", "x", 500).limit


def test_accounts_of_keys_that_left_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warren_serve.ratelimit._MAX_IDLE_ACCOUNTS", 3)
    book, clock = accounts(requests_per_minute=1)
    for key in "abc":
        book.enter(key, key)
        book.leave(key, key)
    assert book.ask("a").limit
    clock.now += 61
    book.ask("d")
    assert set(book._accounts) == {"d"}
