"""A client of an OpenAI-compatible endpoint, which answers a benchmark or judges answers.

It bounds the requests in flight, and pauses where the endpoint asks for it.
"""

import asyncio
import email.utils
import json
import math
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from warren.errors import ConfigError, ServiceError

_BUSY = (429, 503)
_TRANSIENT = (408, 409, 425, 500, 502, 504)
_WRONG_SETTINGS = (401, 403, 404, 405)  # whatever is asked, the answer will be the same
_ROUTE = "/chat/completions"
_HAS_VERSION = re.compile(r"/v\d[^/]*(/|$)")
_MAX_FAILURES_IN_A_ROW = 8
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_SHOWN_CHARS = 300


class RequestFailedError(ServiceError):
    """One request failed; others may not.

    Attributes:
        is_transient: Whether the same request may succeed later.
    """

    is_transient = False


class TransientRequestError(RequestFailedError):
    """A request failed as often as it was tried, for a reason that may pass.

    Attributes:
        retry_after_s: How long the endpoint asks to wait before the next try.
    """

    is_transient = True
    retry_after_s: float | None = None


@dataclass(frozen=True)
class OptionNames:
    """What messages call the options that name an endpoint."""

    url: str = "--endpoint"
    model: str = "--model"
    key: str = "--api-key-env"


@dataclass(frozen=True)
class EndpointOptions:
    """How an endpoint is asked.

    Attributes:
        url: Its base URL, with or without `/v1`; a URL with another version, as `/v1beta/openai`, is taken as it is.
        model: The model's name there; None takes the only one.
        api_key: Sent as a bearer token; None sends none.
        concurrency: Most requests at a time.
        timeout_s: Longest time for one response.
        num_tries: How often a request is tried that fails in another way than the next two.
        busy_s: How long a request is repeated while the endpoint says that it is busy (429, 503).
        away_s: How long it is repeated while nothing accepts the connection.
        names: What messages call these options.
    """

    url: str
    model: str | None = None
    api_key: str | None = field(default=None, repr=False)
    concurrency: int = 8
    timeout_s: float = 300.0
    num_tries: int = 4
    busy_s: float = 900.0
    away_s: float = 120.0
    names: OptionNames = OptionNames()

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
        except ValueError as error:
            raise ConfigError(f"{self.names.url} is {self.url!r}, which is not a URL: {error}") from None
        if parts.username or parts.password:
            raise ConfigError(
                f"{self.names.url} holds a user name or password; give the key by {self.names.key} VARIABLE instead"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{self.names.url} is {self.url!r}; it is a URL such as http://127.0.0.1:8000/v1")
        if self.concurrency < 1:
            raise ConfigError(f"--concurrency is {self.concurrency}; it is at least 1")
        if self.timeout_s <= 0:
            raise ConfigError(f"--timeout-s is {self.timeout_s:g}; it is more than 0")

    @property
    def base(self) -> str:
        """The URL that routes are added to."""
        base = self.url.rstrip("/").removesuffix(_ROUTE).rstrip("/")
        return base if _HAS_VERSION.search(urlsplit(base).path) else f"{base}/v1"


@dataclass(frozen=True)
class ChatAnswer:
    """What an endpoint wrote, and how many tokens it says that this took."""

    text: str
    num_tokens: int | None


class FailureStreak:
    """Ends a run where an endpoint is down: it is not the questions that fail."""

    def __init__(self) -> None:
        self._length = 0

    def count(self, is_transient: bool, reason: str | None) -> None:
        """Count what became of one question.

        Args:
            is_transient: Whether it failed for a reason that may pass.
            reason: Why it failed.

        Raises:
            ServiceError: Several in a row have failed so.
        """
        self._length = self._length + 1 if is_transient else 0
        if self._length >= _MAX_FAILURES_IN_A_ROW:
            raise ServiceError(
                f"{self._length} questions in a row failed, the last one with: {reason}. "
                "What was answered is kept; run this again when the endpoint answers"
            )


class EndpointClient:
    """Sends requests to one endpoint; use it as an async context manager.

    Args:
        options: Where and how.
        pause: Makes a pause out of the longest one, so that requests do not come back all at once.
        sleep: Waits for so many seconds.

    Attributes:
        slots: Hold one while a request is made and sent: it bounds requests and what they hold in memory.
    """

    def __init__(
        self,
        options: EndpointOptions,
        pause: Callable[[float], float] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.options, self._sleep = options, sleep
        self.slots = asyncio.Semaphore(options.concurrency)
        self._pause = pause or _jittered
        self._open_at_s = 0.0  # nobody sends before: the pause that the endpoint asks of one request holds for all
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "EndpointClient":
        key = self.options.api_key
        self._session = aiohttp.ClientSession(
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=aiohttp.ClientTimeout(total=self.options.timeout_s),
            connector=aiohttp.TCPConnector(limit=self.options.concurrency),
            trust_env=True,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def models(self) -> list[dict[str, Any]]:
        """Return the endpoint's models as it describes them.

        Raises:
            ServiceError: It does not answer.
        """
        body = await self.request("GET", "/models")
        models = body.get("data") if isinstance(body, dict) else None
        if not isinstance(models, list) or not all(isinstance(each, dict) and each.get("id") for each in models):
            raise ServiceError(f"{self.options.base}/models is not OpenAI's list of models: is this the right URL?")
        return models

    async def chat(self, body: Mapping[str, Any]) -> ChatAnswer:
        """Send a chat request until it succeeds, and return what the endpoint wrote.

        Raises:
            TransientRequestError: It failed as often as it may be tried, or the response has no text.
            RequestFailedError: The endpoint refuses this request.
            ServiceError: The endpoint refuses every request: URL, key or model is wrong.
        """
        response = await self.request("POST", _ROUTE, body)
        try:
            text = response["choices"][0]["message"]["content"]
            num_tokens = (response.get("usage") or {}).get("completion_tokens")
        except (KeyError, IndexError, TypeError, AttributeError):
            text = None
        if not isinstance(text, str):
            raise TransientRequestError(f"the endpoint's response has no text: {json.dumps(response)[:200]}")
        return ChatAnswer(text, num_tokens if isinstance(num_tokens, int) else None)

    async def request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Send a request until it succeeds, and return the JSON of its response.

        Raises:
            TransientRequestError: It failed as often as it may be tried.
            RequestFailedError: The endpoint refuses this request.
            ServiceError: The endpoint refuses every request: URL, key or model is wrong.
        """
        num_failed, pauses, trouble_since = 0, count(), None
        while True:
            await self._sleep(max(0.0, self._open_at_s - time.monotonic()))
            try:
                return await self._send(method, path, body)
            except _BusyError as busy:
                trouble_since = trouble_since or time.monotonic()
                patience_s = self.options.away_s if busy.is_away else self.options.busy_s
                if time.monotonic() - trouble_since >= patience_s:
                    raise TransientRequestError(f"{busy} (tried for {patience_s:g} s)") from None
                # The server's time, and a random one on top, else all requests would come back at the same moment.
                wait_s = self._backoff_s(next(pauses)) + (busy.retry_after_s or 0.0)
                self._open_at_s = max(self._open_at_s, time.monotonic() + wait_s)
            except TransientRequestError as error:
                num_failed += 1
                if num_failed >= self.options.num_tries:
                    raise TransientRequestError(f"{error} (tried {num_failed} times)") from None
                await self._sleep(self._backoff_s(next(pauses)) + (error.retry_after_s or 0.0))

    def _backoff_s(self, num_pauses: int) -> float:
        return self._pause(min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(num_pauses, 16)))

    async def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        assert self._session is not None
        url = f"{self.options.base}{path}"
        try:
            async with self._session.request(method, url, json=body) as response:
                if response.status == 200:
                    # Some proxies answer JSON as text/plain.
                    return await response.json(content_type=None)
                text = await response.text(errors="replace")
                raise self._error_of(response.status, text, response.headers.get("Retry-After"), url)
        except TimeoutError:
            raise TransientRequestError(f"{url} did not answer within {self.options.timeout_s:g} s") from None
        except aiohttp.InvalidURL:
            raise ConfigError(f"{self.options.names.url} is {self.options.url!r}, which is not a URL") from None
        except aiohttp.ClientConnectorError as error:
            raise _BusyError(f"{url} does not answer: {error}", None, is_away=True) from None
        except (aiohttp.ClientError, OSError) as error:
            raise TransientRequestError(f"{url} does not answer: {error or type(error).__name__}") from None
        except ValueError as error:
            raise TransientRequestError(f"{url} answered with what is not JSON: {error}") from None

    def _error_of(self, status: int, text: str, retry_after: str | None, url: str) -> Exception:
        shown = f"{url}: HTTP {status}: {' '.join(text.split())[:_SHOWN_CHARS]}"
        if status in _BUSY:
            return _BusyError(shown, retry_after_s(retry_after))
        if status in _WRONG_SETTINGS:
            names = self.options.names
            return ServiceError(f"{shown}: check {names.url}, {names.model} and {names.key}")
        # Codes above 504 are proxies' own (520 to 530 of Cloudflare), and pass.
        if status not in _TRANSIENT and status <= 504:
            return RequestFailedError(shown)
        error = TransientRequestError(shown)
        error.retry_after_s = retry_after_s(retry_after)
        return error


class _BusyError(Exception):
    """The endpoint asks to come again, or is not there."""

    def __init__(self, message: str, retry_after_s: float | None, is_away: bool = False) -> None:
        super().__init__(message)
        self.retry_after_s, self.is_away = retry_after_s, is_away


def _jittered(longest_s: float) -> float:
    return random.uniform(0.5, 1.0) * longest_s


def retry_after_s(value: str | None, longest_s: float = 600.0) -> float | None:
    """Read the header Retry-After (RFC 9110, section 10.2.3): seconds, or a date.

    None where it says nothing that can be followed, as a negative number does; the usual pause is made then.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
        except (ValueError, TypeError, OverflowError):
            return None
    # A clock that is wrong must not stop a run for days.
    return min(longest_s, seconds) if math.isfinite(seconds) and seconds >= 0 else None
