"""The seam between HTTP and the model: questions go in, pieces of answers come out.

    ingress                                     engine
    HTTP → request → Question ────── ask ──▶ prompt → slots
    JSON or events ◀── Answer ◀──────────── Piece, Piece, …

What crosses it depends on no release: while one rolls in, any ingress replica may ask any engine replica. Tokens,
templates and image sizes belong to the engine's side, and every piece says which release made it.
"""

import asyncio
import dataclasses
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from warren.inference import (
    ChoiceDelta,
    Engine,
    EngineBusyError,
    EngineClosedError,
    EngineError,
    GenerationRequest,
    RequestRefusedError,
    TokenDelta,
    TokenStream,
    merge_streams,
)
from warren_serve.errors import ApiError, bad_request, internal_error, overloaded, unavailable
from warren_serve.image_decoder import ImageDecoder
from warren_serve.prompt import PromptBuilder
from warren_serve.protocol import GenerationFields
from warren_serve.settings import ServeSettings

logger = logging.getLogger(__name__)

_PREPARING_THREADS = 2
_MAX_LOGPROBS = 20_000
"""In one piece, alternatives included: some hundred kilobytes. A message between replicas may have four megabytes."""

Debit = Callable[[str, int], None]
"""Takes tokens from a key's budget that were used, but that the asking side never learnt of."""


@dataclass(frozen=True)
class EngineRequest:
    """A request whose shape was checked.

    Attributes:
        request: Its image URLs are empty: `images` holds what they named.
        images: Encoded, in the order of the request's image parts.
        key: Whose tokens are counted; None where they are not.
    """

    request: GenerationFields
    images: tuple[bytes, ...] = ()
    key: str | None = None


@dataclass(frozen=True)
class ResponseChunk:
    """Some tokens of an answer's choices, and what they are part of.

    Attributes:
        items: Deltas by choice.
        num_prompt_tokens: Of the whole prompt, in every piece.
        version: The release that answers.
        token_bytes: The bytes of every token that the deltas' log-probabilities name.
    """

    items: tuple[ChoiceDelta, ...]
    num_prompt_tokens: int
    version: str
    token_bytes: Mapping[int, bytes] = field(default_factory=dict)


class Backend(Protocol):
    """What answers questions: an engine in this process, or the engines behind a deployment handle."""

    @property
    def is_alive(self) -> bool:
        """Whether it takes questions."""
        ...

    def ask(self, engine_request: EngineRequest) -> AsyncGenerator[ResponseChunk]:
        """Answer piece by piece; closing the generator frees the slots.

        Raises:
            ApiError: It cannot be answered; before the first piece this becomes the status code.
        """
        ...

    def close(self) -> None:
        """Stop; unfinished answers fail."""
        ...


class LocalBackend:
    """An engine in this process, with what the release says about prompts.

    Args:
        engine: Running; closed with the backend.
        prompts: Builds requests for it.
        version: The release's.
        settings: The endpoint's.
        decoder: Closed with the backend; None for its own.
        debit: Told of tokens that were generated for nobody.
    """

    def __init__(
        self,
        engine: Engine,
        prompts: PromptBuilder,
        version: str,
        settings: ServeSettings,
        decoder: ImageDecoder | None = None,
        debit: Debit | None = None,
    ) -> None:
        self.engine = engine
        self.prompts = prompts
        self._version = version
        self._settings = settings
        self._debit = debit
        # Few at a time: an image is large while it is decoded, and decoding competes with the model for cores. Its
        # threads are its own, so that texts do not wait for images.
        self.decoder = decoder or ImageDecoder(
            _PREPARING_THREADS, settings.max_image_pixels, settings.image_decode_timeout_s
        )
        self._preparing = ThreadPoolExecutor(_PREPARING_THREADS, thread_name_prefix="warren-prepare")
        self._decoding = ThreadPoolExecutor(_PREPARING_THREADS, thread_name_prefix="warren-decode")

    @property
    def is_alive(self) -> bool:
        """Whether the engine runs."""
        return self.engine.is_alive

    async def ask(self, engine_request: EngineRequest) -> AsyncGenerator[ResponseChunk]:
        """See `Backend.ask`."""
        loop = asyncio.get_running_loop()
        threads = self._decoding if engine_request.images else self._preparing
        generation = await loop.run_in_executor(threads, self._generation, engine_request)
        pause_s = self._settings.stream_interval_s if engine_request.request.stream else None
        streams: list[_CountedStream] = []
        num_delivered, is_failed = 0, False
        # The asking side has its own deadline; this one holds when that side died.
        limit = loop.call_later(self._settings.request_timeout_s, _abort, streams)
        try:
            for number in range(engine_request.request.n):
                streams.append(_CountedStream(self.engine.submit(_with_own_seed(generation, number))))
            async for items in merge_streams(streams, pause_s):
                for part in _parts(items):
                    yield self._chunk(part, generation)
                    num_delivered += sum(len(delta.token_ids) for _, delta in part)
        except EngineError as error:
            is_failed = True
            raise _api_error(error) from None
        finally:
            limit.cancel()
            _abort(streams)
            if engine_request.key and streams and not is_failed:
                self._charge(engine_request.key, len(generation.prompt_ids), streams, num_delivered)

    def close(self) -> None:
        """Stop the engine; unfinished answers fail."""
        self.engine.close()
        for threads in (self._preparing, self._decoding):
            threads.shutdown(wait=False, cancel_futures=True)
        self.decoder.close()

    def _generation(self, engine_request: EngineRequest) -> GenerationRequest:
        return self.prompts.decode(self.prompts.prepare(engine_request.request), engine_request.images, self.decoder)

    def _charge(self, key: str, num_prompt: int, streams: "Sequence[_CountedStream]", num_delivered: int) -> None:
        """Charge what was generated for an asker who left before it was told; a prompt is told with the first piece."""
        num_undelivered = (
            sum(stream.num_tokens for stream in streams) - num_delivered + (0 if num_delivered else num_prompt)
        )
        if self._debit and num_undelivered:
            self._debit(key, num_undelivered)

    def _chunk(self, items: tuple[ChoiceDelta, ...], generation: GenerationRequest) -> ResponseChunk:
        named = {one.token_id for _, delta in items for one in delta.logprobs}
        named |= {token for _, delta in items for one in delta.logprobs for token, _ in one.alternatives}
        token_bytes = {token: self.prompts.token_bytes(token) for token in named}
        return ResponseChunk(items, len(generation.prompt_ids), self._version, token_bytes)


class _CountedStream:
    """A stream that counts the tokens it gave."""

    def __init__(self, stream: TokenStream) -> None:
        self._stream = stream
        self.num_tokens = 0

    async def __aiter__(self) -> AsyncIterator[TokenDelta]:
        async for delta in self._stream:
            self.num_tokens += len(delta.token_ids)
            yield delta

    def abort(self) -> None:
        self._stream.abort()


def _parts(items: tuple[ChoiceDelta, ...]) -> Iterator[tuple[ChoiceDelta, ...]]:
    """Cut what would be too long for one message, as the log-probabilities of a long answer."""
    num_logprobs = sum(1 + len(one.alternatives) for _, delta in items for one in delta.logprobs)
    if num_logprobs <= _MAX_LOGPROBS:
        yield items
        return
    for index, delta in items:
        most = max(1, _MAX_LOGPROBS // (1 + max((len(one.alternatives) for one in delta.logprobs), default=0)))
        starts = range(0, max(1, len(delta.token_ids), len(delta.logprobs)), most)
        for start in starts:
            ids, logprobs = delta.token_ids[start : start + most], delta.logprobs[start : start + most]
            is_last = start == starts[-1]
            part = TokenDelta(delta.text if is_last else "", ids, logprobs, delta.finish_reason if is_last else None)
            yield ((index, part),)


def _abort(streams: list[_CountedStream]) -> None:
    for stream in streams:
        stream.abort()


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
