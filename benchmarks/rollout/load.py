"""The load: open-loop requests at a constant rate, streams and whole answers, with images and without."""

import asyncio
import base64
import json
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np

from benchmarks.rollout.releases import NAME, WORDS
from warren.inference.testing import png_bytes

_TIMEOUT = aiohttp.ClientTimeout(total=120)
_NUM_IMAGES = 24
_NUM_TOKENS = 16
_STREAMED, _SAMPLED, _WITH_IMAGE = 0.6, 0.3, 0.5  # fractions
_OVERLOADED = 429


@dataclass(frozen=True)
class Outcome:
    """What became of one request.

    Attributes:
        phase: What the benchmark was doing when it was sent.
        version: The release that answered; None if none did.
        seconds: Until the last byte.
        first_s: Until the first token of a stream.
        error: Why it failed; None if it did not.
        is_refused: Whether the endpoint refused it because of overload, which is no failure.
    """

    phase: str
    version: str | None = None
    seconds: float = 0.0
    first_s: float | None = None
    error: str | None = None
    is_refused: bool = False


@dataclass
class Load:
    """Sends requests from a thread of its own, whatever becomes of the earlier ones.

    Attributes:
        url: Of the endpoint.
        requests_per_s: How many.
        phase: What the benchmark is doing.
        outcomes: Of all requests that ended.
    """

    url: str
    requests_per_s: float
    phase: str = "warming up"
    outcomes: list[Outcome] = field(default_factory=list)

    def __enter__(self) -> "Load":
        rng = random.Random(1)
        self._images = [png_bytes((rng.randrange(256), rng.randrange(256), 90)) for _ in range(_NUM_IMAGES)]
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run(rng)), name="load")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def answered_by(self, version: str) -> int:
        """Return how many requests a release has answered."""
        return sum(one.version == version for one in self.outcomes)

    async def _run(self, rng: random.Random) -> None:
        tasks: set[asyncio.Task[None]] = set()
        async with aiohttp.ClientSession(timeout=_TIMEOUT, connector=aiohttp.TCPConnector(limit=0)) as session:
            next_s = time.monotonic()
            while not self._stopped.is_set():
                task = asyncio.create_task(self._ask(session, self._body(rng)))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                next_s += rng.expovariate(self.requests_per_s)
                await asyncio.sleep(max(0.0, next_s - time.monotonic()))
            await asyncio.gather(*tasks)

    async def _ask(self, session: aiohttp.ClientSession, body: dict[str, Any]) -> None:
        phase, began_s = self.phase, time.perf_counter()
        try:
            headers = {"x-session-id": uuid.uuid4().hex}
            async with session.post(f"{self.url}/v1/chat/completions", json=body, headers=headers) as answer:
                if answer.status != 200:
                    text, is_refused = (await answer.text())[:300], answer.status == _OVERLOADED
                    outcome = Outcome(phase, error=f"{answer.status} {text}", is_refused=is_refused)
                else:
                    read = _read_stream if body["stream"] else _read_whole
                    outcome = await read(answer, phase, began_s)
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError) as error:
            outcome = Outcome(phase, error=repr(error))
        if outcome.error:
            print(f"  failed ({phase}, {time.perf_counter() - began_s:.1f} s): {outcome.error}", flush=True)
        self.outcomes.append(outcome)

    def _body(self, rng: random.Random) -> dict[str, Any]:
        parts: list[dict[str, Any]] = [{"type": "text", "text": " ".join(rng.choices(WORDS, k=rng.randint(3, 9)))}]
        if rng.random() < _WITH_IMAGE:
            url = "data:image/png;base64," + base64.b64encode(rng.choice(self._images)).decode()
            parts.insert(0, {"type": "image_url", "image_url": {"url": url}})
        return {
            "model": NAME,
            "messages": [{"role": "user", "content": parts}],
            "max_tokens": _NUM_TOKENS,
            "temperature": 0.8 if rng.random() < _SAMPLED else 0,
            "stream": rng.random() < _STREAMED,
        }


async def _read_whole(answer: aiohttp.ClientResponse, phase: str, began_s: float) -> Outcome:
    value = await answer.json()
    seconds = time.perf_counter() - began_s
    if not value["choices"][0]["finish_reason"]:
        return Outcome(phase, error=f"the answer has no end: {value}")
    return Outcome(phase, value["system_fingerprint"], seconds)


async def _read_stream(answer: aiohttp.ClientResponse, phase: str, began_s: float) -> Outcome:
    versions: Counter[str] = Counter()
    first_s, last = None, ""
    async for line in answer.content:
        if not line.startswith(b"data: "):
            continue
        last = line[6:].decode().strip()
        if last == "[DONE]":
            break
        event = json.loads(last)
        if "error" in event:
            return Outcome(phase, error=f"cut in the middle: {event['error']}")
        if event["choices"] and event["choices"][0]["delta"].get("content"):
            first_s = first_s or time.perf_counter() - began_s
            versions[event["system_fingerprint"]] += 1
    if last != "[DONE]":
        return Outcome(phase, error=f"cut in the middle, after {last!r}")
    if len(versions) > 1:
        return Outcome(phase, error=f"an answer of several releases: {dict(versions)}")
    version = next(iter(versions), None)
    return Outcome(phase, version, time.perf_counter() - began_s, first_s)


def p99_s(outcomes: Sequence[Outcome], phase: str) -> float | None:
    """Return the 99th percentile of the whole answers' times in a phase; None if there are too few."""
    seconds = [one.seconds for one in outcomes if one.phase == phase and not one.error]
    return float(np.percentile(seconds, 99)) if len(seconds) >= 50 else None
