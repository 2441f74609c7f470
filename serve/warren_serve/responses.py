"""Answers to requests: whole or streamed, one or several choices, never longer than the deadline."""

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from warren.inference import TokenDelta, TokenLogprob, join_deltas
from warren_serve.admission import Visit
from warren_serve.backend import EngineRequest, ResponseChunk
from warren_serve.errors import ApiError, deadline_exceeded, internal_error
from warren_serve.service import ChatService

logger = logging.getLogger(__name__)


class ChatResponse:
    """The choices being generated for one request. Whatever happens, `close` frees their slots.

    Args:
        service: What answers.
        question: What was asked.
        visit: Told of the tokens that were used.
        deadline: When the last token must have come, on the event loop's clock.
    """

    _id_prefix = "chatcmpl"
    _whole_object, _chunk_object = "chat.completion", "chat.completion.chunk"

    def __init__(self, service: ChatService, engine_request: EngineRequest, visit: Visit, deadline: float) -> None:
        self._request = engine_request.request
        self._visit = visit
        self._timeout_s = service.settings.request_timeout_s
        self._metrics = service.metrics
        self._loop = asyncio.get_running_loop()
        self._last_s = self._loop.time()  # when the last tokens came
        self._deadline = deadline
        self._chunks = service.backend.ask(engine_request)
        self._num_prompt_tokens = 0
        self._num_tokens = 0
        self._token_bytes: dict[int, bytes] = {}
        self._head = {
            "id": f"{self._id_prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": service.model_name,
            "system_fingerprint": service.release.version,
        }

    async def close(self) -> None:
        """Free the slots; harmless after the end."""
        await self._chunks.aclose()

    async def whole(self) -> dict[str, Any]:
        """Wait for all choices; returns a `chat.completion`.

        Raises:
            ApiError: Generation failed or took too long.
        """
        deltas: list[list[TokenDelta]] = [[] for _ in range(self._request.n)]
        try:
            while (chunk := await self._next()) is not None:
                for index, delta in chunk.items:
                    deltas[index].append(delta)
        finally:
            await self.close()
        choices = [self._choice(index, join_deltas(parts)) for index, parts in enumerate(deltas)]
        return {**self._head, "object": self._whole_object, "choices": choices, "usage": self._usage()}

    async def first(self) -> ResponseChunk | None:
        """Wait for the first chunk, so that early failures still become a status code.

        Raises:
            ApiError: Generation failed or took too long.
        """
        try:
            return await self._next()
        except BaseException:
            await self.close()
            raise

    async def events(self, first: ResponseChunk | None) -> AsyncIterator[bytes]:
        """Yield server-sent events: a chunk per delta, the usage where asked, `[DONE]`."""
        try:
            for index in range(self._request.n):
                for event in self._opening(index):
                    yield event
            chunk = first
            while chunk is not None:
                for index, delta in chunk.items:
                    logprobs = self._logprobs(delta)
                    if delta.text or logprobs:
                        yield self._chunk(index, delta.text, logprobs=logprobs)
                    if delta.finish_reason:
                        yield self._chunk(index, "", delta.finish_reason)
                chunk = await self._next()
            options = self._request.stream_options
            if options and options.include_usage:
                yield self._event({"choices": [], "usage": self._usage()})
            yield b"data: [DONE]\n\n"
        except ApiError as error:
            yield _event(error.body())  # the status line is gone; clients raise on this
        except Exception:
            logger.exception("a stream failed")
            yield _event(internal_error().body())
        finally:
            await self.close()

    async def _next(self) -> ResponseChunk | None:
        """Return the next chunk; None after the last."""
        try:
            async with asyncio.timeout_at(self._deadline):
                chunk = await anext(self._chunks)
        except StopAsyncIteration:
            return None
        except TimeoutError:
            raise deadline_exceeded(self._timeout_s) from None
        self._head["system_fingerprint"] = chunk.version
        new = sum(len(delta.token_ids) for _, delta in chunk.items)
        self._measure(chunk, new)
        self._visit.use(new + chunk.num_prompt_tokens - self._num_prompt_tokens)
        self._num_prompt_tokens = chunk.num_prompt_tokens
        self._num_tokens += new
        self._token_bytes |= chunk.token_bytes
        return chunk

    def _measure(self, chunk: ResponseChunk, num_new: int) -> None:
        now, is_first = self._loop.time(), not self._num_tokens
        self._metrics.count_tokens(chunk.num_prompt_tokens - self._num_prompt_tokens, num_new)
        if self._request.stream and is_first:
            self._metrics.first_token_s.observe(now - self._last_s)
        elif self._request.stream:
            self._metrics.time_tokens(now - self._last_s, num_new)
        self._last_s = now

    def _choice(self, index: int, whole: TokenDelta) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": whole.text, "refusal": None},
            "finish_reason": whole.finish_reason,
            "logprobs": self._logprobs(whole),
        }

    def _opening(self, index: int) -> Sequence[bytes]:
        """Return what a choice begins with."""
        choice = {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        return (self._event({"choices": [choice | {"logprobs": None}]}),)

    def _chunk(self, index: int, text: str, finish: str | None = None, logprobs: Any = None) -> bytes:
        delta = {} if finish else {"content": text}
        choice = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
        return self._event({"choices": [choice]})

    def _event(self, value: dict[str, Any]) -> bytes:
        return _event({**self._head, "object": self._chunk_object, **value})

    def _usage(self) -> dict[str, int]:
        prompt, answer = self._num_prompt_tokens, self._num_tokens
        return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}

    def _logprobs(self, delta: TokenDelta) -> dict[str, Any] | None:
        if self._request.num_logprobs is None:
            return None
        return {"content": [self._logprob(one) for one in delta.logprobs], "refusal": None}

    def _logprob(self, one: TokenLogprob) -> dict[str, Any]:
        return {
            **self._token(one.token_id, one.logprob),
            "top_logprobs": [self._token(token_id, logprob) for token_id, logprob in one.alternatives],
        }

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        data = self._token_bytes[token_id]  # may be a part of a character, which the text cannot show
        text = data.decode(errors="replace")
        # JSON has no infinity; OpenAI's documentation gives -9999 for tokens that are all but impossible.
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(data)}


class CompletionResponse(ChatResponse):
    """The same for `/v1/completions`: plain texts instead of messages."""

    _id_prefix = "cmpl"
    _whole_object = _chunk_object = "text_completion"

    def _choice(self, index: int, whole: TokenDelta) -> dict[str, Any]:
        return {"index": index, "text": whole.text, "finish_reason": whole.finish_reason, "logprobs": None}

    def _opening(self, index: int) -> Sequence[bytes]:
        return ()

    def _chunk(self, index: int, text: str, finish: str | None = None, logprobs: Any = None) -> bytes:
        return self._event({"choices": [{"index": index, "text": text, "finish_reason": finish, "logprobs": None}]})


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
