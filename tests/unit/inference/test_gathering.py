"""Several streams read at a bounded pace."""

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
    script: Sequence[TokenDelta | EngineError], pause_s: float | None, count: int = 1, delay_s: float = 0.0
) -> Any:
    async def main() -> Any:
        engine = ScriptedEngine(lambda _: script, delay_s=delay_s)
        return [items async for items in merge_streams([engine.submit(REQUEST) for _ in range(count)], pause_s)]

    return asyncio.run(main())


def test_without_a_pause_every_delta_comes_alone() -> None:
    pieces = _read(WORDS, 0.0, delay_s=0.01)
    assert [[(number, delta.text) for number, delta in items] for items in pieces] == [[(0, c)] for c in "abcd"]


def test_the_first_comes_at_once_and_the_rest_is_joined() -> None:
    pieces = _read(WORDS, 60.0, count=2, delay_s=0.01)
    assert [delta.text for _, delta in pieces[0]] == ["a", "a"]
    rest = dict(pieces[1])
    assert rest[0] == rest[1] == TokenDelta("bcd", (1, 2, 3), (), "stop")
    assert len(pieces) == 2


def test_whoever_wants_the_whole_gets_one_piece() -> None:
    ((item,),) = _read(WORDS, None, delay_s=0.001)
    assert item == (0, TokenDelta("abcd", (0, 1, 2, 3), (), "stop"))


@pytest.mark.parametrize(("pause_s", "told"), [(0.0, "ab"), (None, "")])
def test_what_came_before_a_failure_is_given_first_unless_all_was_to_come_at_once(
    pause_s: float | None, told: str
) -> None:
    """Who was told nothing may ask another engine."""
    got: list[str] = []

    async def main() -> None:
        engine = ScriptedEngine(lambda _: [*WORDS[:2], GenerationFailedError("no")], delay_s=0.01)
        async for items in merge_streams([engine.submit(REQUEST)], pause_s):
            got.extend(delta.text for _, delta in items)

    with pytest.raises(GenerationFailedError):
        asyncio.run(main())
    assert "".join(got) == told


def test_leaving_early_leaves_no_task_behind() -> None:
    async def main() -> None:
        engine = ScriptedEngine(lambda _: WORDS, delay_s=0.01)
        pieces = merge_streams([engine.submit(REQUEST)], 0.0)
        await anext(pieces)
        await pieces.aclose()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


@pytest.mark.parametrize("pause_s", [0.0, 0.005, None])
def test_what_comes_while_the_reader_is_busy_is_not_lost(pause_s: float | None) -> None:
    async def main() -> None:
        engine, told = ScriptedEngine(lambda _: WORDS), []
        async for items in merge_streams([engine.submit(REQUEST)], pause_s):
            told += [delta for _, delta in items]
            await asyncio.sleep(0.01)  # a slow client: the stream ends meanwhile
        assert "".join(delta.text for delta in told) == "abcd"
        assert told[-1].finish_reason == "stop"

    asyncio.run(main())
