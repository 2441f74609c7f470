"""Responses to requests: whole or streamed, with one or several choices, within the deadline."""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TypedDict

from pydantic import BaseModel

from warren.inference import TokenDelta, TokenLogprob, join_deltas
from warren.inference.engine import FinishReason
from warren_serve.admission import RateLimitLease
from warren_serve.backend import EngineRequest, ResponseChunk
from warren_serve.errors import ApiError, deadline_exceeded, internal_error
from warren_serve.response_models import (
    AnswerMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChoiceLogprobs,
    GeneratedToken,
    MessageDelta,
    ScoredToken,
    TextChoice,
    TextChunkChoice,
    TextCompletion,
    TextCompletionChunk,
    Usage,
)
from warren_serve.service import ChatService

logger = logging.getLogger(__name__)

_LOWEST_LOGPROB = -9999.0
"""JSON has no infinity; OpenAI's documentation gives this value for tokens that are all but impossible."""


class _Head(TypedDict):
    """See `ResponseHead`."""

    id: str
    created: int
    model: str
    system_fingerprint: str


class ChatResponse:
    """The response to one request while it is generated. Whatever happens, `close` must be called to free its slots.

    Attributes:
        failure: The error that a stream ended with, after it had begun.

    Args:
        service: The service whose backend answers.
        engine_request: The request.
        lease: Records the tokens that are used.
        deadline: When the last token must have come, on the event loop's clock.
    """

    _id_prefix = "chatcmpl"

    def __init__(
        self, service: ChatService, engine_request: EngineRequest, lease: RateLimitLease, deadline: float
    ) -> None:
        self.failure: ApiError | None = None
        self._request = engine_request.request
        self._lease = lease
        self._timeout_s = service.settings.request_timeout_s
        self._metrics = service.metrics
        self._loop = asyncio.get_running_loop()
        self._last_chunk_s = self._loop.time()
        self._deadline = deadline
        self._chunks = service.backend.ask(engine_request)
        self._num_prompt_tokens = 0
        self._num_answer_tokens = 0
        self._token_bytes: dict[int, bytes] = {}
        self._head = _Head(
            id=f"{self._id_prefix}-{uuid.uuid4().hex}",
            created=int(time.time()),
            model=service.model_name,
            system_fingerprint=service.release.version,
        )

    async def close(self) -> None:
        """Free the slots; harmless after the end."""
        await self._chunks.aclose()

    async def whole(self) -> bytes:
        """Wait for all choices and return the JSON of the whole response.

        Raises:
            ApiError: Generation failed or took too long.
        """
        deltas: list[list[TokenDelta]] = [[] for _ in range(self._request.n)]
        try:
            while (chunk := await self._next()) is not None:
                for index, delta in chunk.deltas:
                    deltas[index].append(delta)
        finally:
            await self.close()
        return _json(self._completion([join_deltas(parts) for parts in deltas]))

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
        """Yield server-sent events: a chunk per delta, the usage if the request wants it, and `[DONE]`."""
        try:
            for index in range(self._request.n):
                for opening in self._opening(index):
                    yield _event(opening)
            chunk = first
            while chunk is not None:
                for index, delta in chunk.deltas:
                    for part in self._delta_chunks(index, delta):
                        yield _event(part)
                chunk = await self._next()
            options = self._request.stream_options
            if options and options.include_usage:
                yield _event(self._usage_chunk())
            yield b"data: [DONE]\n\n"
        except ApiError as error:
            self.failure = error
            yield _event(error.body())  # the status line was sent; clients raise when they read this
        except Exception:
            logger.exception("a stream failed")
            self.failure = internal_error()
            yield _event(self.failure.body())
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
        # While a release rolls in, the engine that answers may serve another version than this ingress.
        self._head["system_fingerprint"] = chunk.version
        num_new = sum(len(delta.token_ids) for _, delta in chunk.deltas)
        self._measure(chunk, num_new)
        # The prompt is counted with the first chunk only; later chunks repeat its number.
        self._lease.record_usage(num_new + chunk.num_prompt_tokens - self._num_prompt_tokens)
        self._num_prompt_tokens = chunk.num_prompt_tokens
        self._num_answer_tokens += num_new
        self._token_bytes |= chunk.token_bytes
        return chunk

    def _measure(self, chunk: ResponseChunk, num_new: int) -> None:
        now, is_first = self._loop.time(), not self._num_answer_tokens
        self._metrics.count_tokens(chunk.num_prompt_tokens - self._num_prompt_tokens, num_new)
        if self._request.stream and is_first:
            self._metrics.first_token_s.observe(now - self._last_chunk_s)
        elif self._request.stream:
            self._metrics.time_tokens(now - self._last_chunk_s, num_new)
        self._last_chunk_s = now

    def _completion(self, answers: Sequence[TokenDelta]) -> BaseModel:
        """Return the whole response."""
        choices = [
            ChatChoice(
                index=index,
                message=AnswerMessage(role="assistant", content=answer.text, refusal=None),
                finish_reason=_finish_reason(answer),
                logprobs=self._logprobs(answer),
            )
            for index, answer in enumerate(answers)
        ]
        return ChatCompletion(**self._head, object="chat.completion", choices=choices, usage=self._usage())

    def _opening(self, index: int) -> Sequence[BaseModel]:
        """Return the chunks that a choice begins with."""
        delta = MessageDelta(role="assistant", content="")
        return (self._chunk(ChatChunkChoice(index=index, delta=delta, finish_reason=None, logprobs=None)),)

    def _delta_chunks(self, index: int, delta: TokenDelta) -> Iterator[BaseModel]:
        """Yield one chunk with the text of a delta, and one with its finish reason."""
        logprobs = self._logprobs(delta)
        if delta.text or logprobs:
            added = MessageDelta(content=delta.text)
            yield self._chunk(ChatChunkChoice(index=index, delta=added, finish_reason=None, logprobs=logprobs))
        if delta.finish_reason:
            last = ChatChunkChoice(index=index, delta=MessageDelta(), finish_reason=delta.finish_reason, logprobs=None)
            yield self._chunk(last)

    def _usage_chunk(self) -> BaseModel:
        return ChatCompletionChunk(**self._head, object="chat.completion.chunk", choices=[], usage=self._usage())

    def _chunk(self, choice: ChatChunkChoice) -> ChatCompletionChunk:
        return ChatCompletionChunk(**self._head, object="chat.completion.chunk", choices=[choice])

    def _usage(self) -> Usage:
        num_prompt, num_answer = self._num_prompt_tokens, self._num_answer_tokens
        return Usage(prompt_tokens=num_prompt, completion_tokens=num_answer, total_tokens=num_prompt + num_answer)

    def _logprobs(self, delta: TokenDelta) -> ChoiceLogprobs | None:
        if self._request.num_logprobs is None:
            return None
        return ChoiceLogprobs(content=[self._generated(one) for one in delta.logprobs], refusal=None)

    def _generated(self, one: TokenLogprob) -> GeneratedToken:
        token = self._scored(one.token_id, one.logprob)
        alternatives = [self._scored(token_id, logprob) for token_id, logprob in one.alternatives]
        return GeneratedToken(token=token.token, logprob=token.logprob, bytes=token.bytes, top_logprobs=alternatives)

    def _scored(self, token_id: int, logprob: float) -> ScoredToken:
        data = self._token_bytes[token_id]  # may be a part of a character, which the text cannot show
        text = data.decode(errors="replace")
        return ScoredToken(token=text, logprob=max(logprob, _LOWEST_LOGPROB), bytes=list(data))


class CompletionResponse(ChatResponse):
    """The same for `/v1/completions`: plain texts instead of messages."""

    _id_prefix = "cmpl"

    def _completion(self, answers: Sequence[TokenDelta]) -> BaseModel:
        choices = [
            TextChoice(index=index, text=answer.text, finish_reason=_finish_reason(answer), logprobs=None)
            for index, answer in enumerate(answers)
        ]
        return TextCompletion(**self._head, object="text_completion", choices=choices, usage=self._usage())

    def _opening(self, index: int) -> Sequence[BaseModel]:
        return ()

    def _delta_chunks(self, index: int, delta: TokenDelta) -> Iterator[BaseModel]:
        if delta.text:
            yield self._text_chunk(TextChunkChoice(index=index, text=delta.text, finish_reason=None, logprobs=None))
        if delta.finish_reason:
            last = TextChunkChoice(index=index, text="", finish_reason=delta.finish_reason, logprobs=None)
            yield self._text_chunk(last)

    def _usage_chunk(self) -> BaseModel:
        return TextCompletionChunk(**self._head, object="text_completion", choices=[], usage=self._usage())

    def _text_chunk(self, choice: TextChunkChoice) -> TextCompletionChunk:
        return TextCompletionChunk(**self._head, object="text_completion", choices=[choice])


def _finish_reason(answer: TokenDelta) -> FinishReason:
    if answer.finish_reason is None:
        logger.error("the engine sent an answer without a finish reason")
        raise internal_error()
    return answer.finish_reason


def _json(response: BaseModel) -> bytes:
    return response.model_dump_json(exclude_unset=True).encode()


def _event(response: BaseModel) -> bytes:
    return b"data: " + _json(response) + b"\n\n"
