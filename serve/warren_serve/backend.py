"""The interface between HTTP and the model: an `EngineRequest` goes in, `ResponseChunk`s come out.

    ingress                                        engine
    ChatRequest → EngineRequest ────── ask ──▶ GenerationRequest → slots
    JSON or events ◀──────────────────────── ResponseChunk, ResponseChunk, …

Neither type depends on a release, because any ingress replica may ask any engine replica while a release rolls in.
Tokens, templates and image sizes belong to the engine's side, and every chunk names the release that made it.
"""

import asyncio
import dataclasses
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol

from opentelemetry.trace import Status, StatusCode
from prometheus_client.metrics_core import Metric

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
from warren.inference.detokenize import TokenBytes
from warren_serve.errors import ApiError, bad_request, internal_error, overloaded, unavailable
from warren_serve.image_decoder import ImageDecoder
from warren_serve.metrics import engine_registry
from warren_serve.prompt import PromptBuilder
from warren_serve.protocol import GenerationFields
from warren_serve.settings import ServeSettings
from warren_serve.tracing import start_engine_span

logger = logging.getLogger(__name__)

_PREPARING_THREADS = 2
_MAX_LOGPROBS = 20_000
"""In one chunk, alternatives included: some hundred kilobytes. A message between replicas may have four megabytes."""

UsageReporter = Callable[[str, int], None]
"""Charges a key for tokens that were generated, but that the ingress never received."""


@dataclass(frozen=True)
class EngineRequest:
    """A checked request on its way from the ingress to an engine.

    Attributes:
        request: Its image URLs are `attachment:0`, …: indexes of `images`.
        images: Encoded images, in the order of the request's image parts.
        key: Digest of the key whose tokens are counted; None where tokens are not limited.
        version: The release that the ingress chose; another one answers if that one is gone.
        traceparent: Identifies the request's trace; None where nothing is traced.
    """

    request: GenerationFields
    images: tuple[bytes, ...] = ()
    key: str | None = None
    version: str | None = None
    traceparent: str | None = None


@dataclass(frozen=True)
class ResponseChunk:
    """Deltas of an answer's choices on their way from an engine to the ingress.

    Attributes:
        deltas: One for each choice that has new tokens.
        num_prompt_tokens: Tokens of the whole prompt; the same in every chunk.
        version: The version of the release that answers.
        token_bytes: The bytes of every token in the deltas' log-probabilities.
        num_lost_replicas: Replicas that died while they answered this request; noted by the ingress.
    """

    deltas: tuple[ChoiceDelta, ...]
    num_prompt_tokens: int
    version: str
    token_bytes: Mapping[int, bytes] = field(default_factory=dict)
    num_lost_replicas: int = 0


class Backend(Protocol):
    """Answers requests: by an engine in this process, or by the engines behind a deployment handle."""

    @property
    def is_alive(self) -> bool:
        """Whether it takes requests."""
        ...

    def ask(self, engine_request: EngineRequest) -> AsyncGenerator[ResponseChunk]:
        """Yield the answer chunk by chunk; closing the generator frees the slots.

        Raises:
            ApiError: The request cannot be answered. Before the first chunk, this becomes the status code.
        """
        ...

    def metrics(self) -> Iterable[Metric]:
        """Return the metrics of the engine in this process; none where engines are elsewhere."""
        ...

    def close(self) -> None:
        """Stop; unfinished answers fail."""
        ...


class LocalBackend:
    """A backend with its engine in this process.

    Attributes:
        version: The release's version.

    Args:
        engine: A running engine; closed with the backend.
        version: The release's version.
        settings: The endpoint's settings.
        decoder: Decodes images; closed with the backend. None makes one.
        report_usage: Called with the tokens that were generated for a client who left. None where no key is limited.
    """

    def __init__(
        self,
        engine: Engine,
        version: str,
        settings: ServeSettings,
        decoder: ImageDecoder | None = None,
        report_usage: UsageReporter | None = None,
    ) -> None:
        self.engine = engine
        self.prompts = PromptBuilder(engine.inputs, engine.tokenizer, engine.max_context_tokens, settings)
        self._token_bytes = TokenBytes(engine.tokenizer)
        self.version = version
        self._settings = settings
        self._report_usage = report_usage
        # Few images at a time, because decoding needs much memory and competes with the model for cores. Decoding has
        # threads of its own, so that texts do not wait for images.
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
        span = start_engine_span(engine_request.traceparent, self.version)
        try:
            async with aclosing(self._ask(engine_request)) as chunks:
                async for chunk in chunks:
                    span.add_event("step", {"tokens": sum(len(delta.token_ids) for _, delta in chunk.deltas)})
                    yield chunk
        except ApiError as error:
            span.set_status(Status(StatusCode.ERROR, error.code))
            raise
        finally:
            span.end()

    async def _ask(self, engine_request: EngineRequest) -> AsyncGenerator[ResponseChunk]:
        loop = asyncio.get_running_loop()
        threads = self._decoding if engine_request.images else self._preparing
        generation = await loop.run_in_executor(threads, self.prepare, engine_request)
        interval_s = self._settings.stream_interval_s if engine_request.request.stream else None
        streams: list[_CountedStream] = []
        num_delivered, is_failed = 0, False
        # The asking side has its own deadline; this one holds when that side died.
        # The ingress has the same deadline, but it may be gone without a cancellation.
        limit = loop.call_later(self._settings.request_timeout_s, _abort, streams)
        try:
            for number in range(engine_request.request.n):
                streams.append(_CountedStream(self.engine.submit(_with_own_seed(generation, number))))
            async for deltas in merge_streams(streams, interval_s):
                for part in split_deltas(deltas):
                    yield self._chunk(part, generation)
                    num_delivered += sum(len(delta.token_ids) for _, delta in part)
        except EngineError as error:
            is_failed = True
            raise _api_error(error) from None
        finally:
            limit.cancel()
            _abort(streams)
            if engine_request.key and streams and not is_failed:
                self._report_undelivered(engine_request.key, len(generation.prompt_ids), streams, num_delivered)

    def metrics(self) -> Iterable[Metric]:
        """See `Backend.metrics`."""
        return engine_registry(self.engine.stats, self.version).collect()

    def close(self) -> None:
        """Stop the engine; unfinished answers fail."""
        self.engine.close()
        for threads in (self._preparing, self._decoding):
            threads.shutdown(wait=False, cancel_futures=True)
        self.decoder.close()

    def prepare(self, engine_request: EngineRequest) -> GenerationRequest:
        """Tokenise a request and decode its images; this is slow, so call it off the event loop.

        Raises:
            ApiError: The request cannot be answered.
        """
        return self.prompts.decode(self.prompts.prepare(engine_request.request), engine_request.images, self.decoder)

    def _report_undelivered(
        self, key: str, num_prompt: int, streams: "Sequence[_CountedStream]", num_delivered: int
    ) -> None:
        """Report the tokens that the ingress did not receive before it left; the first chunk reports the prompt's."""
        num_generated = sum(stream.num_tokens for stream in streams)
        num_undelivered = num_generated - num_delivered + (0 if num_delivered else num_prompt)
        if self._report_usage and num_undelivered:
            self._report_usage(key, num_undelivered)

    def _chunk(self, deltas: tuple[ChoiceDelta, ...], generation: GenerationRequest) -> ResponseChunk:
        token_ids = {one.token_id for _, delta in deltas for one in delta.logprobs}
        token_ids |= {token for _, delta in deltas for one in delta.logprobs for token, _ in one.alternatives}
        token_bytes = {token_id: self._token_bytes(token_id) for token_id in token_ids}
        return ResponseChunk(deltas, len(generation.prompt_ids), self.version, token_bytes)


class _CountedStream:
    """A stream that counts the tokens it has produced."""

    def __init__(self, stream: TokenStream) -> None:
        self._stream = stream
        self.num_tokens = 0

    async def __aiter__(self) -> AsyncIterator[TokenDelta]:
        async for delta in self._stream:
            self.num_tokens += len(delta.token_ids)
            yield delta

    def abort(self) -> None:
        self._stream.abort()


def split_deltas(deltas: tuple[ChoiceDelta, ...]) -> Iterator[tuple[ChoiceDelta, ...]]:
    """Split deltas with so many log-probabilities that they would be too long for one message."""
    num_logprobs = sum(1 + len(one.alternatives) for _, delta in deltas for one in delta.logprobs)
    if num_logprobs <= _MAX_LOGPROBS:
        yield deltas
        return
    for index, delta in deltas:
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
    # With one seed for all choices, they would all be equal.
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
