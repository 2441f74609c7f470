"""Engines that answer at once, well or badly, by the name of their version; Serve applications import this module."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from typing import Any, cast

from ray import serve

from warren.errors import ReleaseError
from warren.inference import TokenDelta
from warren.rollout.answer_checks import BUILT_IN
from warren_serve.backend import EngineRequest, ResponseChunk
from warren_serve.front import FrontSettings, assemble_front

NUM_TOKENS = 10
WORDS = ("a", "sentence", "of", "words", "that", "differ,", "more", "or", "less")
PAUSE_S = 0.05


@serve.deployment(name="Engine")
class StandInEngine:
    """Streams `NUM_TOKENS` words. A version called `broken…` does not start, `garbage…` repeats itself always, and
    `looping…` does it where nobody checks."""

    def __init__(self, settings: Mapping[str, Any], accounts: Any = None) -> None:
        self._version = settings["release"].rsplit("/", 1)[-1]
        if self._version.startswith("broken"):
            raise ReleaseError(f"{self._version} does not load: its weights are not weights")

    async def answer(self, engine_request: EngineRequest) -> AsyncGenerator[ResponseChunk]:
        for number in range(NUM_TOKENS):
            word, is_last = self._word(number, engine_request), number == NUM_TOKENS - 1
            delta = TokenDelta(word, (number,), finish_reason="stop" if is_last else None)
            yield ResponseChunk(((0, delta),), 3, self._version)
            await asyncio.sleep(PAUSE_S)

    def _word(self, number: int, engine_request: EngineRequest) -> str:
        is_checked = any(question.text in str(engine_request.request) for question in BUILT_IN)
        is_loop = self._version.startswith("garbage") or (self._version.startswith("looping") and not is_checked)
        return "again " if is_loop else f"{WORDS[number % len(WORDS)]} "


def front(args: dict[str, Any]) -> serve.Application:
    """Build the endpoint with these engines."""
    return assemble_front(FrontSettings.parse(args), cast(serve.Deployment, StandInEngine))
