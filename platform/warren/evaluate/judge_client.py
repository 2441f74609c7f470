"""A client of the judge: any endpoint that takes OpenAI's chat requests."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from warren.errors import ConfigError, ServiceError
from warren.evaluate.benchmarks.benchmark import JudgeRequest

_ROUTE = "/chat/completions"
_BUSY = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_REFUSED = frozenset({401, 403, 404, 405})  # whatever is asked, the answer will be the same
_SHOWN_CHARS = 200


@dataclass(frozen=True)
class JudgeEndpoint:
    """Where the judge is, and how hard it may be asked.

    Attributes:
        url: Its base URL, as `https://api.openai.com/v1`.
        model: The name that requests give.
        api_key: Sent as a bearer token; None for an endpoint without keys.
        max_concurrency: Requests in flight.
        timeout_s: For one attempt.
        max_attempts: Of one request, when the judge is busy or cannot be reached.
        first_pause_s: After the first failed attempt. It doubles with each further one; `Retry-After` replaces it.
        longest_pause_s: The longest pause between two attempts.
    """

    url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    max_concurrency: int = 8
    timeout_s: float = 120.0
    max_attempts: int = 7
    first_pause_s: float = 1.0
    longest_pause_s: float = 60.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.username or parts.password:
            raise ConfigError("--judge holds a user name or password; give the key by --judge-key-env VAR instead")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"--judge is {self.url!r}; give the base URL of an endpoint, as http://127.0.0.1:8000/v1")
        if not self.model:
            raise ConfigError("--judge needs --judge-model: the name of the model that judges")

    @classmethod
    def of(cls, url: str, model: str | None, key_variable: str | None) -> "JudgeEndpoint":
        """Return the endpoint that options of a command line name.

        Args:
            url: Its base URL.
            model: The model's name.
            key_variable: The environment variable that holds the key; None for no key.

        Raises:
            ConfigError: An option is missing or wrong.
        """
        key = os.environ.get(key_variable) if key_variable else None
        if key_variable and not key:
            raise ConfigError(f"--judge-key-env names {key_variable}, which is not set: export it, or leave it out")
        return cls(url, model or "", key)

    @property
    def chat_url(self) -> str:
        """The URL that requests go to."""
        return f"{self.url.rstrip('/').removesuffix(_ROUTE)}{_ROUTE}"


class JudgeRequestError(ServiceError):
    """One request got no judgement; another request may get one."""


class JudgeClient:
    """Asks the judge. Only so many requests are in flight as the endpoint allows."""

    def __init__(
        self,
        endpoint: JudgeEndpoint,
        session: aiohttp.ClientSession,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._endpoint, self._session, self._sleep = endpoint, session, sleep
        self._slots = asyncio.Semaphore(endpoint.max_concurrency)

    async def ask(self, request: JudgeRequest) -> str:
        """Return what the judge writes.

        Raises:
            JudgeRequestError: This request was refused, or the judge stayed busy.
            ServiceError: The judge refuses every request, as for a wrong key, URL or model.
        """
        endpoint, reason = self._endpoint, ""
        async with self._slots:
            for attempt in range(endpoint.max_attempts):
                pause_s = min(endpoint.first_pause_s * 2**attempt, endpoint.longest_pause_s)
                try:
                    status, text, retry_after = await self._post(request.body(endpoint.model))
                except (aiohttp.ClientError, TimeoutError) as error:
                    reason = f"cannot be reached: {str(error) or type(error).__name__}"
                else:
                    if status == 200:
                        return text
                    reason = f"answered {status}: {text[:_SHOWN_CHARS]}"
                    self._check(status, reason)
                    pause_s = pause_s if retry_after is None else min(retry_after, endpoint.longest_pause_s)
                if attempt + 1 < endpoint.max_attempts:
                    await self._sleep(pause_s)
        raise JudgeRequestError(f"the judge {reason} ({endpoint.max_attempts} attempts)")

    def _check(self, status: int, reason: str) -> None:
        """Raise where asking again cannot help."""
        if status in _REFUSED:
            raise ServiceError(f"the judge {self._endpoint.chat_url} {reason}; check URL, model and key")
        if status not in _BUSY:
            raise JudgeRequestError(f"the judge {reason}")

    async def _post(self, body: dict[str, Any]) -> tuple[int, str, float | None]:
        """Return status, the judge's text (or the error's), and the seconds of `Retry-After`."""
        key = self._endpoint.api_key
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        timeout = aiohttp.ClientTimeout(total=self._endpoint.timeout_s)
        async with self._session.post(self._endpoint.chat_url, json=body, headers=headers, timeout=timeout) as response:
            text = await response.text(errors="replace")
            if response.status != 200:
                return response.status, " ".join(text.split()), _seconds(response.headers.get("Retry-After"))
            try:
                content = (await response.json(content_type=None))["choices"][0]["message"]["content"]
            except (ValueError, KeyError, IndexError, TypeError):
                raise JudgeRequestError(
                    f"the judge's response is not a chat completion: {text[:_SHOWN_CHARS]}"
                ) from None
            return 200, content if isinstance(content, str) else "", None


def _seconds(header: str | None) -> float | None:
    try:
        seconds = float(header) if header else None
    except ValueError:
        return None  # a date: the usual pause will do
    return seconds if seconds is not None and 0 <= seconds < float("inf") else None
