"""The load: open-loop requests, each with an image of its own, and what each of them saw."""

import asyncio
import base64
import io
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np
from PIL import Image

_TIMEOUT = aiohttp.ClientTimeout(total=900, sock_read=900)


@dataclass(frozen=True)
class Load:
    """What is sent.

    Attributes:
        num_clients: Each sends by a Poisson process of its own, whether or not it was answered.
        requests_per_client_s: The rate of each.
        num_requests: Sent altogether.
        image_px: Height and width of every image; no two are equal.
        num_new_tokens: Of an answer: at least and at most; drawn evenly between.
    """

    num_clients: int
    requests_per_client_s: float
    num_requests: int
    image_px: int
    num_new_tokens: tuple[int, int]


@dataclass
class Timeline:
    """When things happened to one request, in seconds of one clock."""

    sent_s: float
    chunks_s: list[float] = field(default_factory=list)
    num_tokens: int = 0
    error: str | None = None

    @property
    def time_to_first_s(self) -> float:
        """From sending to the first text."""
        return self.chunks_s[0] - self.sent_s

    @property
    def gaps_s(self) -> list[float]:
        """Between pieces of text as they arrive."""
        return [after - before for before, after in zip(self.chunks_s, self.chunks_s[1:], strict=False)]

    @property
    def seconds_per_token(self) -> float:
        """Mean, after the first."""
        return (self.chunks_s[-1] - self.chunks_s[0]) / max(1, self.num_tokens - 1)


async def send_all(url: str, model: str, load: Load, seed: int) -> list[Timeline]:
    """Send the load and wait for every answer. The same seed sends the same requests at the same times."""
    rng = random.Random(seed)
    bodies = [_body(model, load, rng) for _ in range(load.num_requests)]
    rate = load.num_clients * load.requests_per_client_s
    waits_s = [rng.expovariate(rate) for _ in bodies]
    async with aiohttp.ClientSession(timeout=_TIMEOUT, connector=aiohttp.TCPConnector(limit=0)) as session:
        tasks = []
        for body, wait_s in zip(bodies, waits_s, strict=True):
            await asyncio.sleep(wait_s)
            tasks.append(asyncio.create_task(_send(session, url, body)))
        return list(await asyncio.gather(*tasks))


async def _send(session: aiohttp.ClientSession, url: str, body: bytes) -> Timeline:
    timeline = Timeline(time.perf_counter())
    headers = {"content-type": "application/json"}
    try:
        async with session.post(f"{url}/v1/chat/completions", data=body, headers=headers) as answer:
            if answer.status != 200:
                timeline.error = f"{answer.status}: {(await answer.text())[:200]}"
                return timeline
            async for line in answer.content:
                if line.startswith(b"data: {"):
                    _note(timeline, json.loads(line[6:]))
    except (aiohttp.ClientError, TimeoutError) as error:
        timeline.error = repr(error)
    if not timeline.chunks_s and not timeline.error:
        timeline.error = "the answer was empty"
    return timeline


def _note(timeline: Timeline, event: dict[str, Any]) -> None:
    if "error" in event:
        timeline.error = str(event["error"])
    elif event.get("usage"):
        timeline.num_tokens = event["usage"]["completion_tokens"]
    elif event["choices"] and event["choices"][0]["delta"].get("content"):
        timeline.chunks_s.append(time.perf_counter())


def _body(model: str, load: Load, rng: random.Random) -> bytes:
    words = " ".join(rng.choices(["what", "colour", "shape", "is", "there", "how", "many"], k=12))
    url = "data:image/jpeg;base64," + base64.b64encode(make_image(load.image_px, rng)).decode()
    parts: Sequence[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": words},
    ]
    body = {
        "model": model,
        "messages": [{"role": "user", "content": parts}],
        "max_tokens": rng.randint(*load.num_new_tokens),
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return json.dumps(body).encode()


def make_image(size_px: int, rng: random.Random) -> bytes:
    """Return a JPEG that no other request has: coarse noise, as large as a photograph of its size."""
    noise = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (size_px // 8, size_px // 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((size_px, size_px), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()
