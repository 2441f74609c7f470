"""The seam between HTTP and the model: questions go in, pieces of answers come out.

    ingress                                     engine
    HTTP → request → Question ────── ask ──▶ prompt → slots
    JSON or events ◀── Answer ◀──────────── Piece, Piece, …

What crosses it depends on no release: while one rolls in, any ingress replica may ask any engine replica. Tokens,
templates and picture sizes belong to the engine's side, and every piece says which release made it.
"""

import asyncio
import dataclasses
import logging
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from warren.inference import (
    Engine,
    EngineBusyError,
    EngineClosedError,
    EngineError,
    GenerationRequest,
    Item,
    RequestRefusedError,
    TokenStream,
    gathered,
)
from warren_serve.conversation import PromptBuilder
from warren_serve.errors import ApiError, bad_request, internal_error, overloaded, unavailable
from warren_serve.settings import ServeSettings
from warren_serve.wire import GenerationFields

logger = logging.getLogger(__name__)

_PREPARING_THREADS = 2


@dataclass(frozen=True)
class Question:
    """A request whose shape was checked.

    Attributes:
        request: Its picture URLs are empty: `pictures` holds what they named.
        pictures: Encoded, in the order of the request's image parts.
    """

    request: GenerationFields
    pictures: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Piece:
    """Some tokens of an answer's choices, and what they are part of.

    Attributes:
        items: Deltas by choice.
        num_prompt_tokens: Of the whole prompt, in every piece.
        version: The release that answers.
        token_bytes: The bytes of every token that the deltas' log-probabilities name.
    """

    items: tuple[Item, ...]
    num_prompt_tokens: int
    version: str
    token_bytes: Mapping[int, bytes] = field(default_factory=dict)


class Backend(Protocol):
    """What answers questions: an engine in this process, or the engines behind a deployment handle."""

    @property
    def is_alive(self) -> bool:
        """Whether it takes questions."""
        ...

    def ask(self, question: Question) -> AsyncGenerator[Piece]:
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
    """

    def __init__(self, engine: Engine, prompts: PromptBuilder, version: str, settings: ServeSettings) -> None:
        self.engine = engine
        self.prompts = prompts
        self._version = version
        self._settings = settings
        # Few threads: a picture is large while it is decoded, and decoding competes with the model for cores.
        self._preparing = ThreadPoolExecutor(_PREPARING_THREADS, thread_name_prefix="warren-prepare")

    @property
    def is_alive(self) -> bool:
        """Whether the engine runs."""
        return self.engine.is_alive

    async def ask(self, question: Question) -> AsyncGenerator[Piece]:
        """See `Backend.ask`."""
        loop = asyncio.get_running_loop()
        generation = await loop.run_in_executor(self._preparing, self._generation, question)
        pause_s = self._settings.stream_interval_s if question.request.stream else None
        streams: list[TokenStream] = []
        # The asking side has its own deadline; this one holds when that side died.
        limit = loop.call_later(self._settings.request_timeout_s, _abort, streams)
        try:
            for number in range(question.request.n):
                streams.append(self.engine.submit(_with_own_seed(generation, number)))
            async for items in gathered(streams, pause_s):
                yield self._piece(items, generation)
        except EngineError as error:
            raise _api_error(error) from None
        finally:
            limit.cancel()
            _abort(streams)

    def close(self) -> None:
        """Stop the engine; unfinished answers fail."""
        self.engine.close()
        self._preparing.shutdown(wait=False, cancel_futures=True)

    def _generation(self, question: Question) -> GenerationRequest:
        return self.prompts.decode(self.prompts.plan(question.request), question.pictures)

    def _piece(self, items: tuple[Item, ...], generation: GenerationRequest) -> Piece:
        named = {one.token_id for _, delta in items for one in delta.logprobs}
        named |= {token for _, delta in items for one in delta.logprobs for token, _ in one.alternatives}
        token_bytes = {token: self.prompts.token_bytes(token) for token in named}
        return Piece(items, len(generation.prompt_ids), self._version, token_bytes)


def _abort(streams: list[TokenStream]) -> None:
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
