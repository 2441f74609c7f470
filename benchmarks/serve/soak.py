"""`make soak`: good, bad, slow, cancelled and oversized requests for as long as is asked.

What must hold: every good request is answered whole, every bad one gets its typed refusal, nothing gets a 500, and the
replicas' memory stops growing. The last line printed is one JSON object.
"""

import argparse
import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import aiohttp
import numpy as np
import psutil

from benchmarks.serve.cluster import Endpoint, endpoint
from benchmarks.serve.load import make_image
from benchmarks.serve.model import IMAGE_PX, NAME
from benchmarks.serve.soak_requests import GOOD, KINDS, Outcome, Target

_ARGS = {
    "num_slots": 8,
    "max_context_tokens": 320,
    "body_timeout_s": 5.0,
    "request_timeout_s": 90.0,
    "max_body_bytes": 2 << 20,
    "max_queued_requests": 64,
    "image_cache_bytes": 16 << 20,
}
_SAMPLE_EVERY_S = 10.0
_WARM_UP_FRACTION = 0.25
_REPLICA_MARKS = {"engine": "ServeReplica:bench:Engine", "ingress": "ServeReplica:bench:Ingress", "proxy": "ProxyActor"}


def main() -> None:
    """Soak and report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--users", type=int, default=12)
    parser.add_argument("--quick", action="store_true", help="a small model")
    options = parser.parse_args()
    with endpoint(options.quick) as served:
        served.deploy("warren_serve.app:build", dict(_ARGS))
        report = asyncio.run(_soak(served, options.minutes * 60, options.users))
    print(json.dumps(report))


async def _soak(served: Endpoint, duration_s: float, num_users: int) -> dict[str, Any]:
    outcomes: Counter[tuple[str, str]] = Counter()
    memory: dict[str, list[float]] = {name: [] for name in _REPLICA_MARKS}
    until = time.monotonic() + duration_s
    timeout = aiohttp.ClientTimeout(total=180)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        target = Target(
            session, served.url, NAME, [make_image(IMAGE_PX, random.Random(number)) for number in range(200)]
        )
        users = [_user(target, random.Random(number), until, outcomes) for number in range(num_users)]
        await asyncio.gather(*users, _watch(served, until, memory))
        last = await GOOD(target, random.Random(0))
    return _report(outcomes, memory, last, duration_s)


async def _user(target: Target, rng: random.Random, until: float, outcomes: Counter[tuple[str, str]]) -> None:
    kinds: list[Callable[[Target, random.Random], Awaitable[Outcome]]] = list(KINDS.values())
    names = list(KINDS)
    while time.monotonic() < until:
        number = rng.choices(range(len(kinds)), weights=[8 if kind is GOOD else 1 for kind in kinds])[0]
        try:
            outcome = await kinds[number](target, rng)
        except (aiohttp.ClientError, TimeoutError) as error:
            outcome = Outcome(False, f"lost: {type(error).__name__}")
        outcomes[names[number], "as it must be" if outcome.is_right else outcome.what] += 1


async def _watch(served: Endpoint, until: float, memory: dict[str, list[float]]) -> None:
    """Note the memory of each kind of process of this cluster; a replica's engine is its child."""
    while time.monotonic() < until:
        resident: Counter[str] = Counter()
        for process in served.processes():
            with suppress(psutil.NoSuchProcess):
                title = " ".join(process.cmdline())
                if name := next((name for name, mark in _REPLICA_MARKS.items() if mark in title), None):
                    resident[name] += sum(one.memory_info().rss for one in (process, *process.children()))
        for name, samples in memory.items():
            samples.append(resident[name] / 2**20)
        print("MiB:", {name: round(samples[-1]) for name, samples in memory.items()}, flush=True)
        await asyncio.sleep(_SAMPLE_EVERY_S)


def _report(
    outcomes: Counter[tuple[str, str]], memory: dict[str, list[float]], last: Outcome, duration_s: float
) -> dict[str, Any]:
    wrong = {f"{kind}: {what}": count for (kind, what), count in outcomes.items() if what != "as it must be"}
    by_kind: Counter[str] = Counter()
    for (kind, _), count in outcomes.items():
        by_kind[kind] += count
    return {
        "minutes": round(duration_s / 60, 1),
        "requests": dict(by_kind),
        "num_requests": sum(by_kind.values()),
        "num_500": sum(count for name, count in wrong.items() if ": 500" in name),
        "num_lost": sum(count for name, count in wrong.items() if ": lost" in name),
        "wrong": wrong,
        "answers_after": last.is_right,
        "memory_mib": {name: _trend(samples) for name, samples in memory.items()},
    }


def _trend(samples: list[float]) -> dict[str, float]:
    """Return where memory stood after warming up and at the end, and what a line through the rest grows in an hour."""
    kept = samples[int(len(samples) * _WARM_UP_FRACTION) :]
    slope = np.polyfit(np.arange(len(kept)) * _SAMPLE_EVERY_S / 3600, kept, 1)[0] if len(kept) > 1 else 0.0
    return {
        "warm": round(kept[0]),
        "end": round(kept[-1]),
        "most": round(max(kept)),
        "per_hour": round(float(slope), 1),
    }


if __name__ == "__main__":
    main()
