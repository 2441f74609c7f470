"""What an engine's failure behind a handle becomes, where no cluster makes that failure at will."""

import asyncio
from dataclasses import replace
from typing import Any, cast

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError, Metadata
from ray.exceptions import ActorUnavailableError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from warren.inference import TokenDelta, join_deltas
from warren_serve.backend import EngineRequest, ResponseChunk
from warren_serve.errors import ApiError
from warren_serve.protocol import ChatRequest
from warren_serve.remote_backend import RemoteBackend

_REQUEST = EngineRequest(ChatRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": "hello"}]}))
_CHUNK = ResponseChunk((), 1, "v1")


class _Answer:
    """One call's chunks, then an error. As Serve's, it raises an early error again when cancelled."""

    def __init__(self, chunks: list[ResponseChunk], error: BaseException | None) -> None:
        self._begun = bool(chunks)
        self._chunks = chunks
        self._error = error
        self.cancelled = False

    def __aiter__(self) -> "_Answer":
        return self

    async def __anext__(self) -> ResponseChunk:
        if self._chunks:
            return self._chunks.pop(0)
        raise self._error or StopAsyncIteration

    def cancel(self) -> None:
        self.cancelled = True
        if self._error and not self._begun:
            raise self._error


class _Engines:
    """A deployment's handle, call by call."""

    def __init__(self, *answers: _Answer) -> None:
        self.answers = answers
        self.ways: list[str] = []
        self.requests: list[EngineRequest] = []
        self.answer = self

    @property
    def num_calls(self) -> int:
        return len(self.ways)

    def options(self, _by_reference: bool, **_: Any) -> "_Way":
        return _Way(self, "object" if _by_reference else "grpc")


class _Way:
    """The same handle with options."""

    def __init__(self, engines: _Engines, way: str) -> None:
        self._engines, self._way = engines, way
        self.answer = self

    def remote(self, engine_request: EngineRequest) -> _Answer:
        self._engines.ways.append(self._way)
        self._engines.requests.append(engine_request)
        return self._engines.answers[self._engines.num_calls - 1]


def _ask(engines: _Engines, engine_request: EngineRequest = _REQUEST, seeds: bool = False) -> list[ResponseChunk]:
    async def ask() -> list[ResponseChunk]:
        return [chunk async for chunk in RemoteBackend(cast(DeploymentHandle, engines), seeds).ask(engine_request)]

    return asyncio.run(ask())


def _gone() -> Exception:
    error: Exception = ActorUnavailableError("gone", None)
    return error


def _broken() -> Exception:
    error: Exception = AioRpcError(StatusCode.RESOURCE_EXHAUSTED, Metadata(), Metadata(), "too large")
    return error


def test_an_engine_that_is_gone_before_it_said_anything_is_asked_for_once_more() -> None:
    engines = _Engines(_Answer([], _gone()), _Answer([_CHUNK], None))
    assert _ask(engines) == [replace(_CHUNK, num_lost_replicas=1)]
    assert all(answer.cancelled for answer in engines.answers)


@pytest.mark.parametrize("chunks", [[], [_CHUNK]])
@pytest.mark.parametrize("error", [_broken(), RuntimeError("Unexpected error (RESOURCE_EXHAUSTED)"), ValueError("x")])
def test_a_broken_transport_is_a_typed_error_and_is_not_tried_again(
    chunks: list[ResponseChunk], error: Exception
) -> None:
    engines = _Engines(_Answer(list(chunks), error))
    with pytest.raises(ApiError) as raised:
        _ask(engines)
    assert (raised.value.status, engines.num_calls) == (503, 1)
    assert engines.answers[0].cancelled


def chunk(*deltas: tuple[int, str, tuple[int, ...], Any], version: str = "v1") -> ResponseChunk:
    return ResponseChunk(tuple((i, TokenDelta(text, ids, (), end)) for i, text, ids, end in deltas), 1, version)


WHOLE = [
    chunk((0, "a", (1,), None), (1, "x", (7,), None)),
    chunk((0, "bc", (2, 3), None)),
    chunk((1, "y", (8,), "stop")),
    chunk((0, "d", (4,), None), (1, "", (), None)),
    chunk((0, "", (), "length")),
]
COARSE = [chunk((0, "abcd", (1, 2, 3, 4), None), (1, "xy", (7, 8), "stop")), chunk((0, "", (), "length"))]


def joined(chunks: list[ResponseChunk], index: int) -> tuple[str, tuple[int, ...], str | None]:
    whole = join_deltas([delta for one in chunks for i, delta in one.deltas if i == index])
    return whole.text, whole.token_ids, whole.finish_reason


@pytest.mark.parametrize("second", [WHOLE, COARSE])
@pytest.mark.parametrize("num_before", range(len(WHOLE)))
def test_an_answer_that_began_is_finished_by_another_replica(num_before: int, second: list[ResponseChunk]) -> None:
    engines = _Engines(_Answer(WHOLE[:num_before], _gone()), _Answer(list(second), None))
    answered = _ask(engines)
    assert joined(answered, 0) == ("abcd", (1, 2, 3, 4), "length")
    assert joined(answered, 1)[:2] == ("xy", (7, 8))
    assert [one.num_lost_replicas for one in answered] == [0] * num_before + [1] * (len(answered) - num_before)


@pytest.mark.parametrize(
    "other",
    [
        [chunk((0, "a", (1,), None)), chunk((0, "xx", (5, 3), None))],
        [chunk((0, "a", (1,), "stop"))],
        [chunk((0, "ab!", (1, 2, 3), None))],
        [replace(one, version="v2") for one in WHOLE],
    ],
)
def test_another_answer_than_the_one_that_began_is_never_mixed_in(other: list[ResponseChunk]) -> None:
    engines = _Engines(_Answer(WHOLE[:2], _gone()), _Answer(list(other), None))
    with pytest.raises(ApiError, match="gone"):
        _ask(engines)


def test_a_request_that_ends_every_replica_is_given_up() -> None:
    engines = _Engines(*(_Answer(WHOLE[:n], _gone()) for n in (0, 2, 1, 0)))
    with pytest.raises(ApiError, match="gone"):
        _ask(engines)
    assert engines.num_calls == 3


def test_sampled_answers_get_a_seed_so_that_they_can_be_finished_elsewhere() -> None:
    for seeds, temperature, seed, is_seeded in (
        (True, 0.7, None, True),
        (True, 0, None, False),
        (False, 1, None, False),
    ):
        request = _REQUEST.request.model_copy(update={"temperature": temperature, "seed": seed})
        engines = _Engines(_Answer([_CHUNK], None))
        _ask(engines, EngineRequest(request), seeds)
        assert (engines.requests[0].request.seed is not None) is is_seeded


def test_a_full_queue_is_429_with_retry_after() -> None:
    full = BackPressureError(num_queued_requests=1, max_queued_requests=1)
    with pytest.raises(ApiError) as raised:
        _ask(_Engines(_Answer([], full)))
    assert (raised.value.status, raised.value.code, raised.value.headers) == (429, "overloaded", {"retry-after": "1"})


def test_a_replica_that_cancels_its_calls_is_gone_and_the_request_is_not_cancelled() -> None:
    engines = _Engines(_Answer([], asyncio.CancelledError()), _Answer([_CHUNK], None))
    assert _ask(engines) == [replace(_CHUNK, num_lost_replicas=1)]


def test_a_request_that_grpc_would_refuse_travels_as_an_object() -> None:
    small, large = (EngineRequest(_REQUEST.request, (bytes(size),) * 4) for size in (100_000, 1_000_000))
    long = _REQUEST.request.model_copy(update={"model": "m" * 5_000_000})
    for engine_request, way in ((small, "grpc"), (large, "object"), (EngineRequest(long), "object")):
        engines = _Engines(_Answer([_CHUNK], None))
        _ask(engines, engine_request)
        assert engines.ways == [way]
