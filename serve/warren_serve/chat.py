"""Answers to chat requests: whole or streamed, one or several choices, never longer than the deadline."""

import asyncio
import dataclasses
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

from warren.inference import (
    EngineBusyError,
    EngineClosedError,
    EngineError,
    GenerationRequest,
    RequestRefusedError,
    TokenDelta,
    TokenLogprob,
    TokenStream,
)
from warren_serve.admission import Visit
from warren_serve.errors import (
    ApiError,
    bad_request,
    deadline_exceeded,
    internal_error,
    overloaded,
    unavailable,
)
from warren_serve.service import ChatService
from warren_serve.wire import ChatRequest

logger = logging.getLogger(__name__)

Item = tuple[int, TokenDelta]


class Answer:
    """The choices being generated for one request. Whatever happens, `close` frees their slots.

    Args:
        service: What answers.
        request: What was asked.
        generation: The same, for the engine.
        visit: Told of the tokens that were used.

    Raises:
        ApiError: The engine does not take it.
    """

    def __init__(self, service: ChatService, request: ChatRequest, generation: GenerationRequest, visit: Visit) -> None:
        self._service = service
        self._visit = visit
        self._request = request
        self._num_prompt_tokens = len(generation.prompt_ids)
        self._num_tokens = 0
        self._deadline = asyncio.get_running_loop().time() + service.settings.request_timeout_s
        self._streams: list[TokenStream] = []
        try:
            for number in range(request.n):
                self._streams.append(service.engine.submit(_with_own_seed(generation, number)))
        except EngineError as error:
            self.close()
            raise _api_error(error) from None
        self._items = _merged(self._streams)
        visit.use(self._num_prompt_tokens)
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": service.model_name,
            "system_fingerprint": service.release.version,
        }

    def close(self) -> None:
        """Free the slots; harmless after the end."""
        for stream in self._streams:
            stream.abort()

    async def whole(self) -> dict[str, Any]:
        """Wait for all choices; returns a `chat.completion`.

        Raises:
            ApiError: Generation failed or took too long.
        """
        deltas: list[list[TokenDelta]] = [[] for _ in self._streams]
        try:
            while (item := await self._next()) is not None:
                deltas[item[0]].append(item[1])
        finally:
            self.close()
        choices = [self._choice(index, parts) for index, parts in enumerate(deltas)]
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": self._usage()}

    async def first(self) -> Item | None:
        """Wait for the first delta, so that early failures still become a status code.

        Raises:
            ApiError: Generation failed or took too long.
        """
        try:
            return await self._next()
        except BaseException:
            self.close()
            raise

    async def events(self, first: Item | None) -> AsyncIterator[bytes]:
        """Yield server-sent events: a chunk per delta, the usage where asked, `[DONE]`."""
        try:
            for index in range(len(self._streams)):
                yield self._chunk(index, {"role": "assistant", "content": ""})
            item = first
            while item is not None:
                index, delta = item
                logprobs = self._logprobs([delta])
                if delta.text or logprobs:
                    yield self._chunk(index, {"content": delta.text}, logprobs=logprobs)
                if delta.finish_reason:
                    yield self._chunk(index, {}, delta.finish_reason)
                item = await self._next()
            options = self._request.stream_options
            if options and options.include_usage:
                head = {**self._head, "object": "chat.completion.chunk"}
                yield _event({**head, "choices": [], "usage": self._usage()})
            yield b"data: [DONE]\n\n"
        except ApiError as error:
            yield _event(error.body())  # the status line is gone; clients raise on this
        except Exception:
            logger.exception("a stream failed")
            yield _event(internal_error().body())
        finally:
            self.close()

    async def _next(self) -> Item | None:
        """Return the next delta of any choice; None after the last."""
        try:
            async with asyncio.timeout_at(self._deadline):
                index, delta = await anext(self._items)
        except StopAsyncIteration:
            return None
        except TimeoutError:
            raise deadline_exceeded(self._service.settings.request_timeout_s) from None
        except EngineError as error:
            raise _api_error(error) from None
        self._num_tokens += len(delta.token_ids)
        self._visit.use(len(delta.token_ids))
        return index, delta

    def _choice(self, index: int, deltas: Sequence[TokenDelta]) -> dict[str, Any]:
        text = "".join(delta.text for delta in deltas)
        return {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "finish_reason": deltas[-1].finish_reason,
            "logprobs": self._logprobs(deltas),
        }

    def _chunk(self, index: int, delta: dict[str, Any], finish: str | None = None, logprobs: Any = None) -> bytes:
        choice = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
        return _event({**self._head, "object": "chat.completion.chunk", "choices": [choice]})

    def _usage(self) -> dict[str, int]:
        prompt, answer = self._num_prompt_tokens, self._num_tokens
        return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}

    def _logprobs(self, deltas: Sequence[TokenDelta]) -> dict[str, Any] | None:
        if not self._request.logprobs:
            return None
        return {
            "content": [self._logprob(one) for delta in deltas for one in delta.logprobs],
            "refusal": None,
        }

    def _logprob(self, one: TokenLogprob) -> dict[str, Any]:
        return {
            **self._token(one.token_id, one.logprob),
            "top_logprobs": [self._token(token_id, logprob) for token_id, logprob in one.alternatives],
        }

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        text = self._service.token_text(token_id)
        # JSON has no infinity; OpenAI's documentation gives -9999 for tokens that are all but impossible.
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode())}


async def _merged(streams: Sequence[TokenStream]) -> AsyncIterator[Item]:
    """Yield the deltas of all streams as they come."""
    if len(streams) == 1:
        async for delta in streams[0]:
            yield 0, delta
        return
    queue: asyncio.Queue[Item | EngineError | None] = asyncio.Queue()

    async def pump(index: int, stream: TokenStream) -> None:
        try:
            async for delta in stream:
                queue.put_nowait((index, delta))
            queue.put_nowait(None)
        except EngineError as error:
            queue.put_nowait(error)

    tasks = [asyncio.create_task(pump(index, stream)) for index, stream in enumerate(streams)]
    try:
        ended = 0
        while ended < len(streams):
            item = await queue.get()
            if isinstance(item, EngineError):
                raise item
            if item is None:
                ended += 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task


def _with_own_seed(generation: GenerationRequest, number: int) -> GenerationRequest:
    sampling = generation.sampling
    if number == 0 or sampling.seed is None:
        return generation
    return dataclasses.replace(generation, sampling=dataclasses.replace(sampling, seed=sampling.seed + number))


def _api_error(error: EngineError) -> ApiError:
    if isinstance(error, EngineBusyError):
        return overloaded("All slots are taken; try again shortly.")
    if isinstance(error, EngineClosedError):
        return unavailable("This replica is stopping; try again.")
    if isinstance(error, RequestRefusedError):
        return bad_request(f"The request does not fit the model: {error}.", "invalid_value", "messages")
    logger.error("generation failed: %s", error)
    return internal_error()


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
