"""Patience: errors that may pass are waited out, others are not, and a deadline counts from the last progress."""

import pytest

from warren.config.environment import storage_deadline_s
from warren.errors import ConfigError, StorageError
from warren.storage.retry import RetryPolicy, retrying


def is_transient(error: Exception) -> bool:
    return isinstance(error, TimeoutError)


def failing(times: int, error: Exception) -> list[Exception | str]:
    return [error] * times + ["done"]


def run(script: list[Exception | str]) -> str:
    def action() -> str:
        step = script.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    return retrying(RetryPolicy("s3://b/k", "http://server"), action, is_transient)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warren.storage.retry.time.sleep", lambda _: None)


def test_what_may_pass_is_tried_again() -> None:
    assert run(failing(5, TimeoutError("busy"))) == "done"


def test_what_will_not_pass_is_raised_at_once() -> None:
    script = failing(1, KeyError("no such key"))
    with pytest.raises(KeyError):
        run(script)
    assert script == ["done"]


def test_the_deadline_counts_from_the_last_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARREN_STORAGE_DEADLINE_S", "60")
    clock = [0.0]
    monkeypatch.setattr("warren.storage.retry.time.monotonic", lambda: clock[0])
    patience = RetryPolicy("s3://b/k", "http://server")
    patience.wait(TimeoutError("one"))
    clock[0] = 50.0
    patience.progressed()
    clock[0] = 100.0
    patience.wait(TimeoutError("two"))  # 100 s of trouble in all, but bytes came between
    clock[0] = 161.0
    with pytest.raises(StorageError, match=r"s3://b/k: no answer from http://server within 60 s \(2 attempts.*two"):
        patience.wait(TimeoutError("two"))
    assert patience.was_tried


@pytest.mark.parametrize("given", ["soon", "-1", "nan", "inf"])
def test_a_wrong_deadline_is_refused(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("WARREN_STORAGE_DEADLINE_S", given)
    with pytest.raises(ConfigError, match="WARREN_STORAGE_DEADLINE_S"):
        storage_deadline_s()


def test_no_deadline_given_is_two_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WARREN_STORAGE_DEADLINE_S", raising=False)
    assert storage_deadline_s() == 120
