"""The engine contract: requests, deltas, errors and the `Engine` protocol. Serving and evaluation use only these types.

EngineError (ServiceError)
├── EngineBusyError             every slot and every place in the queue is taken: try again later
├── EngineClosedError           the engine was closed, or died
├── RequestRefusedError         the request can never run here: too long, or malformed
└── GenerationFailedError       this one request failed; the others go on
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from tokenizers import Tokenizer

from warren.data.model_inputs import Inputs
from warren.errors import ServiceError
from warren.storage import digest_bytes

FinishReason = Literal["stop", "length"]


class EngineError(ServiceError):
    """An engine cannot answer."""


class EngineBusyError(EngineError):
    """Every slot and every place in the queue is taken."""


class EngineClosedError(EngineError):
    """The engine was closed, or died."""


class RequestRefusedError(EngineError):
    """The request can never run on this engine."""


class GenerationFailedError(EngineError):
    """One request failed; the engine and its other requests go on."""


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen. The order is transformers': penalties, temperature, top-k, top-p.

    Attributes:
        max_new_tokens: Generation ends with the finish reason `length` after this many tokens.
        temperature: 0 takes the likeliest token.
        top_p: Sample from the smallest set of tokens with this much probability; 1 keeps all.
        top_k: Sample from this many likeliest tokens; 0 keeps all.
        seed: The same request with the same seed gives the same tokens in any company, up to float rounding.
        repetition_penalty: Over prompt and answer (arXiv 1909.05858); 1 is none. See `Sampler` for images.
        presence_penalty: Subtracted once from the logit of every token of the answer so far.
        frequency_penalty: Subtracted per occurrence in the answer so far.
        stop: Strings that end the answer and are not part of it. `Detokenizer` says where they are searched.
        num_logprobs: How many alternatives are reported beside the chosen token; None reports no log-probabilities.
        ignore_eos: Go on after the end-of-sequence token; for benchmarks.
        keeps_leading_space: The answer continues a plain text, so its leading white space is kept. In a chat it is
            dropped.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    num_logprobs: int | None = None
    ignore_eos: bool = False
    keeps_leading_space: bool = False

    @property
    def has_penalties(self) -> bool:
        """Whether any penalty changes the logits."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    @property
    def is_plain_greedy(self) -> bool:
        """Whether the sampler only has to return the likeliest token."""
        return self.temperature == 0.0 and not self.has_penalties and self.num_logprobs is None


@dataclass(frozen=True, eq=False)
class GenerationRequest:
    """One prompt with its images and sampling parameters; it has one answer.

    Attributes:
        prompt_ids: int32 (num_prompt_tokens,), image tokens expanded.
        pixels: uint8 (num_images, 3, size_px, size_px).
        digests: SHA-256 of each image's pixels; features are cached by it.
    """

    prompt_ids: np.ndarray
    pixels: np.ndarray
    sampling: SamplingParams
    digests: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if len(self.digests) != len(self.pixels):
            digests = tuple(digest_bytes(np.ascontiguousarray(image).tobytes()) for image in self.pixels)
            object.__setattr__(self, "digests", digests)


@dataclass(frozen=True)
class TokenLogprob:
    """A token and its log-probability before temperature, with the likeliest alternatives."""

    token_id: int
    logprob: float
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class TokenDelta:
    """The tokens that one or several steps added to an answer. The last delta has a finish reason, perhaps no text."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None


def join_deltas(deltas: Sequence[TokenDelta]) -> TokenDelta:
    """Join consecutive deltas of one answer."""
    if len(deltas) == 1:
        return deltas[0]
    return TokenDelta(
        text="".join(delta.text for delta in deltas),
        token_ids=tuple(token for delta in deltas for token in delta.token_ids),
        logprobs=tuple(logprob for delta in deltas for logprob in delta.logprobs),
        finish_reason=deltas[-1].finish_reason,
    )


Event = tuple[int, TokenDelta | EngineError]
"""The key of a request, with its next delta or the error that ends it."""


@dataclass(frozen=True)
class Completion:
    """A whole answer. `token_ids` includes the end-of-sequence token if the model generated one."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class EngineStats:
    """Load and counters of an engine. Counters start at zero with the engine and only grow."""

    num_slots: int
    num_running: int
    num_waiting: int
    max_context_tokens: int
    kv_bytes: int
    kv_used_tokens: int
    kv_capacity_tokens: int
    image_cache_bytes: int
    image_cache_hits: int
    image_cache_misses: int
    num_prompt_tokens: int
    num_generated_tokens: int
    num_finished: int
    num_cancelled: int
    num_failed: int


class TokenStream(Protocol):
    """The answer to one request as it is generated. A reader that leaves the loop early must call `abort`."""

    def __aiter__(self) -> AsyncIterator[TokenDelta]:
        """Iterate over deltas up to the one with a finish reason; raises `EngineError` when the request fails."""
        ...

    def abort(self) -> None:
        """Free the request's slot now; harmless after the end."""
        ...


class Engine(Protocol):
    """A running model that answers many requests at once."""

    @property
    def inputs(self) -> Inputs:
        """The model's prompt template, special tokens and image preprocessing."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        ...

    @property
    def is_alive(self) -> bool:
        """Whether the engine runs and takes requests; False never becomes True again."""
        ...

    @property
    def max_context_tokens(self) -> int:
        """Most tokens of prompt and answer together."""
        ...

    def submit(self, request: GenerationRequest) -> TokenStream:
        """Queue a request; call it on the event loop that reads the stream.

        Raises:
            EngineBusyError: No slot and no place in the queue is free.
            RequestRefusedError: The request can never run here.
            EngineClosedError: The engine no longer runs.
        """
        ...

    def stats(self) -> EngineStats:
        """Return counts; cheap and callable from any thread."""
        ...

    def close(self) -> None:
        """Stop; unfinished requests fail with `EngineClosedError`. Harmless when repeated."""
        ...
