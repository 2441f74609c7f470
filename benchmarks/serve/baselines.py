"""The two ways of serving that the engine replaces, behind the same ingress.

    sequential   one `generate` after another, as Bunny's worker does
    static       `@serve.batch`: whoever waits is put together, and the batch runs to its end

Both stream: a token is sent as soon as `generate` has it.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from ray import serve
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation import BaseStreamer

from warren.data.model_inputs import tokenizer_from_json
from warren.inference import GenerationRequest, TokenDelta, context_limit
from warren.inference.engine import FinishReason
from warren.models import load_bundle
from warren.models.image_normalizer import ImageNormalizer
from warren.release import fetch_release, resolve_release
from warren_serve.app import assemble
from warren_serve.backend import EngineRequest, ResponseChunk
from warren_serve.prompt import PromptBuilder
from warren_serve.settings import ServeSettings

STATIC_BATCH_SIZE = 32
STATIC_WAIT_S = 2.0
"""Serve (2.60) closes a batch so long after its first request, also while another batch still runs: a short wait fills
batches of one or two, and is no faster than one request after another. 32 clients send 16 requests in this time."""


class _Tokens(BaseStreamer):
    """Hands what `generate` gives to an event loop: per step one token id for each row, None at the end."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.queue: asyncio.Queue[list[int] | None] = asyncio.Queue()
        self._prompt_is_next = True

    def put(self, value: torch.Tensor) -> None:
        if self._prompt_is_next:
            self._prompt_is_next = False
            return
        self._loop.call_soon_threadsafe(self.queue.put_nowait, value.flatten().tolist())

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self.queue.put_nowait, None)


class _Abandoned(StoppingCriteria):
    """Ends `generate` when nobody reads any more."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self.event.is_set(), dtype=torch.bool)


class _Generator:
    """A loaded release with transformers' own `generate` over left-padded prompts."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        settings = ServeSettings.parse(values)
        torch.set_num_threads(1)
        with TemporaryDirectory() as folder:
            self._version = fetch_release(settings.release, Path(folder)).version
            self._model, self._inputs, tokenizer_json = load_bundle(Path(folder))
        self._normalizer = ImageNormalizer(self._inputs.image)
        self._tokenizer = tokenizer_from_json(tokenizer_json)
        limit = context_limit(self._model.config, settings.max_context_tokens)
        self._prompts = PromptBuilder(self._inputs, self._tokenizer, limit, settings)
        self._thread = ThreadPoolExecutor(1)  # one `generate` at a time

    async def chunks(
        self, engine_requests: Sequence[EngineRequest]
    ) -> AsyncGenerator[list[ResponseChunk | type[StopIteration]]]:
        """Generate for all requests, to the end of the longest answer.

        Yields, per step, a chunk for each of them; `StopIteration`, as Serve wants it, where an answer has ended.
        """
        loop = asyncio.get_running_loop()
        requests = [self._request(engine_request) for engine_request in engine_requests]
        tokens, abandoned = _Tokens(), _Abandoned()
        work = loop.run_in_executor(self._thread, self._generate, requests, tokens, abandoned)
        most = max(request.sampling.max_new_tokens for request in requests)
        try:
            for number in range(1, most + 1):
                step = await tokens.queue.get()
                if step is None:
                    break
                yield [self._chunk(request, token, number) for request, token in zip(requests, step, strict=True)]
        finally:
            abandoned.event.set()
            await work

    def _request(self, engine_request: EngineRequest) -> GenerationRequest:
        prompt = self._prompts.prepare(engine_request.request)
        return GenerationRequest(prompt.prompt_ids, self._inputs.pixels(engine_request.images), prompt.sampling)

    def _chunk(self, request: GenerationRequest, token: int, number: int) -> ResponseChunk | type[StopIteration]:
        most = request.sampling.max_new_tokens
        if number > most:
            return StopIteration
        text = self._tokenizer.decode([token])
        reason: FinishReason | None = "length" if number == most else None
        return ResponseChunk(((0, TokenDelta(text, (token,), (), reason)),), len(request.prompt_ids), self._version)

    @torch.inference_mode()
    def _generate(self, requests: Sequence[GenerationRequest], tokens: _Tokens, abandoned: _Abandoned) -> None:
        width = max(len(request.prompt_ids) for request in requests)
        ids = np.full((len(requests), width), self._inputs.tokens.pad_token_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, request in enumerate(requests):
            ids[row, width - len(request.prompt_ids) :] = request.prompt_ids
            mask[row, width - len(request.prompt_ids) :] = 1
        pixels = torch.from_numpy(np.concatenate([request.pixels for request in requests]))
        new = max(request.sampling.max_new_tokens for request in requests)
        self._model.generate(
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask),
            pixel_values=self._normalizer(pixels, torch.float32),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            pad_token_id=self._inputs.tokens.pad_token_id,
            streamer=tokens,
            stopping_criteria=StoppingCriteriaList([abandoned]),
        )


@serve.deployment(name="Engine")
class Sequential:
    """One request at a time."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._generator = _Generator(values)
        self._turn = asyncio.Lock()

    async def answer(self, engine_request: EngineRequest) -> AsyncGenerator[ResponseChunk]:
        """Wait for the turn, then generate."""
        async with self._turn:
            async for (chunk,) in self._generator.chunks([engine_request]):
                if isinstance(chunk, ResponseChunk):
                    yield chunk


@serve.deployment(name="Engine")
class StaticBatch:
    """Whoever waits runs together."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._generator = _Generator(values)

    async def answer(self, engine_request: EngineRequest) -> AsyncGenerator[ResponseChunk]:
        """Wait for a batch, then run in it to its end."""
        async for chunk in self._together(engine_request):
            yield chunk

    @serve.batch(max_batch_size=STATIC_BATCH_SIZE, batch_wait_timeout_s=STATIC_WAIT_S)  # type: ignore[untyped-decorator]
    async def _together(
        self, engine_requests: list[EngineRequest]
    ) -> AsyncGenerator[list[ResponseChunk | type[StopIteration]]]:
        async for chunks in self._generator.chunks(engine_requests):
            yield chunks


def build_sequential(args: dict[str, Any]) -> serve.Application:
    """Build the endpoint with one `generate` after another."""
    return _build(args, Sequential)


def build_static(args: dict[str, Any]) -> serve.Application:
    """Build the endpoint with static batches."""
    return _build(args, StaticBatch)


def _build(args: dict[str, Any], engine: Any) -> serve.Application:
    settings = ServeSettings.parse(args)
    pinned = settings.model_copy(update={"release": resolve_release(settings.release)})
    return assemble(pinned, engine)
