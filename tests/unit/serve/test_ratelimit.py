"""A key's budgets: what a minute's worth means, what comes back, what a lost process leaves behind."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warren_serve.ratelimit import Accounts, Limits


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def accounts(**limits: int) -> tuple[Accounts, Clock]:
    clock = Clock()
    none = dict.fromkeys(("requests_per_minute", "tokens_per_minute", "concurrent_requests"))
    return Accounts(Limits(**none | limits, lease_s=100.0), clock), clock


@pytest.mark.parametrize("rate", [1, 3, 7, 60, 1000])
def test_a_minutes_requests_may_come_at_once_and_then_at_the_rate(rate: int) -> None:
    book, clock = accounts(requests_per_minute=rate)
    assert [book.enter("a").limit for _ in range(rate)] == [""] * rate
    refused = book.enter("a")
    assert refused.limit == "requests_per_minute"
    assert 0 < refused.wait_s <= 60 / rate + 1e-6
    clock.now += refused.wait_s
    assert not book.enter("a").limit
    assert book.enter("a").limit
    assert not book.enter("b").limit, "another key has its own budget"


@given(st.integers(1, 20), st.lists(st.floats(0, 30), max_size=60))
def test_no_longer_stretch_gets_more_than_its_share(rate: int, pauses: list[float]) -> None:
    book, clock = accounts(requests_per_minute=rate)
    start, admitted = clock.now, 0
    for pause in pauses:
        clock.now += pause
        verdict = book.enter("a")
        admitted += not verdict.limit
        assert (verdict.wait_s > 0) == bool(verdict.limit)
        assert admitted <= rate + (clock.now - start) * rate / 60 + 1e-3


def test_tokens_are_taken_all_or_none_and_the_unused_come_back() -> None:
    book, clock = accounts(tokens_per_minute=600)
    lease = book.enter("a").lease
    assert not book.charge("a", 500).limit
    refused = book.charge("a", 200)
    assert refused.limit == "tokens_per_minute"
    assert refused.wait_s == pytest.approx(10)
    assert not book.charge("a", 100).limit, "a refused charge takes nothing"
    book.leave("a", lease, 200)
    assert not book.charge("a", 200).limit
    assert book.charge("a", 1).limit
    clock.now += 60
    assert not book.charge("a", 600).limit


def test_places_are_freed_by_leaving_and_by_a_process_that_never_does() -> None:
    book, clock = accounts(concurrent_requests=2)
    first, second = book.enter("a"), book.enter("a")
    assert book.enter("a").limit == "concurrent_requests"
    book.leave("a", first.lease)
    book.leave("a", first.lease)
    third = book.enter("a")
    assert not third.limit
    assert book.enter("a").limit
    clock.now += 101
    assert not book.enter("a").limit
    book.leave("a", second.lease)
    book.leave("unknown", 5)


def test_accounts_of_keys_that_left_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warren_serve.ratelimit._MAX_IDLE_ACCOUNTS", 3)
    book, clock = accounts(requests_per_minute=1)
    for key in "abc":
        book.leave(key, book.enter(key).lease)
    assert book.enter("a").limit
    clock.now += 61
    book.enter("d")
    assert set(book._accounts) == {"d"}
