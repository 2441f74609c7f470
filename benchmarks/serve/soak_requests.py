"""The kinds of requests a public endpoint meets, each with what it must get."""

import asyncio
import base64
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

_OVERLOADED = (429, 503)


@dataclass(frozen=True)
class Outcome:
    """Whether a request got what it must get; else what it got."""

    is_right: bool
    what: str = ""


@dataclass(frozen=True)
class Target:
    """Where requests go, and images to ask about."""

    session: aiohttp.ClientSession
    url: str
    model: str
    images: list[bytes]

    def body(self, rng: random.Random, **changes: Any) -> dict[str, Any]:
        """Return a request about one image, or none."""
        parts: list[dict[str, Any]] = [{"type": "text", "text": "what is there " * rng.randint(1, 8)}]
        if rng.random() < 0.8:
            url = "data:image/jpeg;base64," + base64.b64encode(rng.choice(self.images)).decode()
            parts.append({"type": "image_url", "image_url": {"url": url}})
        messages = [{"role": "user", "content": parts}]
        return {"model": self.model, "messages": messages, "max_tokens": rng.randint(1, 64), **changes}

    def post(self, data: Any, **headers: str) -> Any:
        """Send a body to the chat route."""
        kind = {"content-type": "application/json"} | headers
        encoded = json.dumps(data).encode() if isinstance(data, dict) else data
        return self.session.post(f"{self.url}/v1/chat/completions", data=encoded, headers=kind)


async def _good(target: Target, rng: random.Random) -> Outcome:
    """A whole answer, plain or streamed; overload is an answer too, if it says when to come again."""
    stream = rng.random() < 0.5
    async with target.post(target.body(rng, stream=stream, temperature=rng.choice([0, 0.8]))) as answer:
        text = await answer.text()
        if answer.status in _OVERLOADED and "retry-after" in answer.headers:
            await asyncio.sleep(1)
            return Outcome(True)
        whole = text.endswith("data: [DONE]\n\n") and '"error"' not in text if stream else '"finish_reason"' in text
        return Outcome(answer.status == 200 and whole, f"{answer.status} {text[-120:]}")


async def _cancelled(target: Target, rng: random.Random) -> Outcome:
    """The client leaves in the middle of an answer."""
    async with target.post(target.body(rng, stream=True, max_tokens=150)) as answer:
        async for _ in answer.content:
            if rng.random() < 0.2:
                break
        return Outcome(answer.status in (200, *_OVERLOADED), str(answer.status))


async def _slow(target: Target, rng: random.Random) -> Outcome:
    """A body that stops in the middle: refused after the endpoint's patience."""

    async def trickle() -> AsyncIterator[bytes]:
        yield b'{"model": '
        await asyncio.sleep(20)

    return await _refused(target.post(trickle()), 408)


async def _refused(posted: Any, *statuses: int) -> Outcome:
    async with posted as answer:
        text = await answer.text()
        right = answer.status in (*statuses, *_OVERLOADED) and '"error"' in text
        return Outcome(right, f"{answer.status} {text[:120]}")


def _bad(change: Callable[[Target, random.Random], Any], *statuses: int) -> Callable[..., Awaitable[Outcome]]:
    async def send(target: Target, rng: random.Random) -> Outcome:
        return await _refused(target.post(change(target, rng)), *(statuses or (400,)))

    return send


def _image(url: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]


def _cut(target: Target, rng: random.Random) -> dict[str, Any]:
    data = rng.choice(target.images)
    cut = base64.b64encode(data[: rng.randint(1, 200)]).decode()
    return target.body(rng, messages=_image(f"data:image/jpeg;base64,{cut}"))


GOOD = _good

KINDS: Mapping[str, Callable[[Target, random.Random], Awaitable[Outcome]]] = {
    "good": GOOD,
    "cancelled": _cancelled,
    "slow": _slow,
    "not JSON": _bad(lambda target, rng: b"{" * rng.randint(1, 5000)),
    "unknown field": _bad(lambda target, rng: target.body(rng, no_such_field=1)),
    "bad temperature": _bad(lambda target, rng: target.body(rng, temperature=-1)),
    "unknown model": _bad(lambda target, rng: target.body(rng, model="other"), 404),
    "truncated image": _bad(_cut),
    "broken base64": _bad(lambda target, rng: target.body(rng, messages=_image("data:image/png;base64,%%%"))),
    "private URL": _bad(lambda target, rng: target.body(rng, messages=_image("http://127.0.0.1/a.png"))),
    "too many tokens": _bad(lambda target, rng: target.body(rng, max_tokens=100_000)),
    "too long": _bad(lambda target, rng: target.body(rng, messages=[{"role": "user", "content": "what " * 3000}])),
    "oversized": _bad(lambda target, rng: target.body(rng, messages=_image("x" * (3 << 20))), 413),
}
