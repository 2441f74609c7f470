"""What an engine's failure behind a handle becomes, where no cluster makes that failure at will."""

import asyncio
from typing import Any, cast

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError, Metadata
from ray.exceptions import ActorUnavailableError
from ray.serve.handle import DeploymentHandle

from warren_serve.backend import Piece, Question
from warren_serve.errors import ApiError
from warren_serve.remote import RemoteBackend
from warren_serve.wire import ChatRequest

_QUESTION = Question(ChatRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": "hello"}]}))
_PIECE = Piece((), 1, "v1")


class _Answer:
    """One call's pieces: those given, then an error."""

    def __init__(self, pieces: list[Piece], error: Exception | None) -> None:
        self._pieces = pieces
        self._error = error
        self.cancelled = False

    def __aiter__(self) -> "_Answer":
        return self

    async def __anext__(self) -> Piece:
        if self._pieces:
            return self._pieces.pop(0)
        raise self._error or StopAsyncIteration

    def cancel(self) -> None:
        self.cancelled = True


class _Engines:
    """A deployment's handle, call by call."""

    def __init__(self, *answers: _Answer) -> None:
        self.answers = answers
        self.num_calls = 0
        self.answer = self

    def options(self, **_: Any) -> "_Engines":
        return self

    def remote(self, _: Question) -> _Answer:
        self.num_calls += 1
        return self.answers[self.num_calls - 1]


def _ask(engines: _Engines) -> list[Piece]:
    async def ask() -> list[Piece]:
        return [piece async for piece in RemoteBackend(cast(DeploymentHandle, engines)).ask(_QUESTION)]

    return asyncio.run(ask())


def _gone() -> Exception:
    return ActorUnavailableError("gone", None)


def _broken() -> Exception:
    return AioRpcError(StatusCode.RESOURCE_EXHAUSTED, Metadata(), Metadata(), "too large")


def test_an_engine_that_is_gone_before_it_said_anything_is_asked_for_once_more() -> None:
    engines = _Engines(_Answer([], _gone()), _Answer([_PIECE], None))
    assert _ask(engines) == [_PIECE]
    assert all(answer.cancelled for answer in engines.answers)


@pytest.mark.parametrize("pieces", [[], [_PIECE]])
def test_a_broken_transport_is_a_typed_error_and_is_not_tried_again(pieces: list[Piece]) -> None:
    engines = _Engines(_Answer(list(pieces), _broken()))
    with pytest.raises(ApiError) as raised:
        _ask(engines)
    assert (raised.value.status, engines.num_calls) == (503, 1)
    assert engines.answers[0].cancelled


def test_an_answer_that_began_is_not_begun_again() -> None:
    engines = _Engines(_Answer([_PIECE], _gone()), _Answer([_PIECE], None))
    with pytest.raises(ApiError):
        _ask(engines)
    assert engines.num_calls == 1
