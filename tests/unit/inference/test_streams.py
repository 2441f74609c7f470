"""Several token streams, merged at a bounded pace."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from warren.inference import (
    EngineError,
    GenerationFailedError,
    GenerationRequest,
    SamplingParams,
    TokenDelta,
    merge_streams,
)
from warren.inference.testing import ScriptedEngine

REQUEST = GenerationRequest(np.arange(3, dtype=np.int32), np.zeros((0, 3, 8, 8), np.uint8), SamplingParams(4))
WORDS = [TokenDelta(text, (number,)) for number, text in enumerate("abc")] + [TokenDelta("d", (3,), (), "stop")]


def _read(
    script: Sequence[TokenDelta | EngineError], interval_s: float | None, count: int = 1, delay_s: float = 0.0
) -> Any:
    async def main() -> Any:
        engine = ScriptedEngine(lambda _: script, delay_s=delay_s)
        return [deltas async for deltas in merge_streams([engine.submit(REQUEST) for _ in range(count)], interval_s)]

    return asyncio.run(main())


def test_without_an_interval_every_delta_comes_alone() -> None:
    yields = _read(WORDS, 0.0, delay_s=0.01)
    assert [[(index, delta.text) for index, delta in deltas] for deltas in yields] == [[(0, c)] for c in "abcd"]


def test_the_first_comes_at_once_and_the_rest_is_joined() -> None:
    first, rest = _read(WORDS, 60.0, count=2, delay_s=0.01)
    assert {delta.text for _, delta in first} == {"a"}, "of one stream, or of both if their tokens came together"
    texts = ["".join(delta.text for one, delta in (*first, *rest) if one == index) for index in (0, 1)]
    assert texts == ["abcd", "abcd"]


def test_a_whole_answer_comes_as_one_delta() -> None:
    ((delta,),) = _read(WORDS, None, delay_s=0.001)
    assert delta == (0, TokenDelta("abcd", (0, 1, 2, 3), (), "stop"))


@pytest.mark.parametrize(("interval_s", "text"), [(0.0, "ab"), (None, "")])
def test_deltas_before_a_failure_come_first_unless_the_answer_is_wanted_whole(
    interval_s: float | None, text: str
) -> None:
    """A reader that got nothing may ask another engine."""
    texts: list[str] = []

    async def main() -> None:
        engine = ScriptedEngine(lambda _: [*WORDS[:2], GenerationFailedError("no")], delay_s=0.01)
        async for deltas in merge_streams([engine.submit(REQUEST)], interval_s):
            texts.extend(delta.text for _, delta in deltas)

    with pytest.raises(GenerationFailedError):
        asyncio.run(main())
    assert "".join(texts) == text


def test_leaving_early_leaves_no_task_behind() -> None:
    async def main() -> None:
        engine = ScriptedEngine(lambda _: WORDS, delay_s=0.01)
        merged = merge_streams([engine.submit(REQUEST)], 0.0)
        await anext(merged)
        await merged.aclose()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


@pytest.mark.parametrize("interval_s", [0.0, 0.005, None])
def test_deltas_that_come_while_the_reader_is_busy_are_not_lost(interval_s: float | None) -> None:
    async def main() -> None:
        engine = ScriptedEngine(lambda _: WORDS)
        read: list[TokenDelta] = []
        async for deltas in merge_streams([engine.submit(REQUEST)], interval_s):
            read += [delta for _, delta in deltas]
            await asyncio.sleep(0.01)  # a slow client: the stream ends meanwhile
        assert "".join(delta.text for delta in read) == "abcd"
        assert read[-1].finish_reason == "stop"

    asyncio.run(main())
