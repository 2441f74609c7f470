"""Generation for batch jobs: all requests are known at the start, so no thread and no queue is needed."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import LlavaForConditionalGeneration

from warren.data.model_inputs import Inputs, tokenizer_from_json
from warren.data.sample import Turn
from warren.inference.engine import (
    Completion,
    EngineError,
    GenerationFailedError,
    GenerationRequest,
    SamplingParams,
    TokenDelta,
    join_deltas,
)
from warren.inference.engine_options import EngineOptions, check_request, context_limit, kv_bytes_per_token
from warren.inference.prompts import Prompt, encode_request
from warren.inference.transformers_engine.scheduler import Scheduler
from warren.models import load_bundle

_MAX_SLOTS = 64
_KV_BYTES = 1 << 30
_PREFILL_BUDGET_TOKENS = 8192
_CONTEXT_STEP = 64  # contexts are rounded up to it, so that batches of similar length share a cache


@dataclass(frozen=True)
class Finished:
    """How one request ended.

    Attributes:
        result: Its answer, or the error of this request alone.
        seconds: From the start of all requests to its end; time in the queue is included.
    """

    result: Completion | EngineError
    seconds: float


def finish_all(scheduler: Scheduler, requests: Sequence[GenerationRequest]) -> list[Finished]:
    """Run requests to their end, longest prompts first; returns what became of each, in their order.

    Args:
        scheduler: It has no other requests.
        requests: They passed `check_request`.

    Raises:
        EngineError: The engine is broken; nothing more can be asked.
    """
    order = sorted(range(len(requests)), key=lambda index: -len(requests[index].prompt_ids))
    started = time.monotonic()
    for index in order:
        scheduler.add(index, requests[index])
    deltas: list[list[TokenDelta]] = [[] for _ in requests]
    finished: dict[int, Finished] = {}
    while scheduler.has_work:
        for key, event in scheduler.step():
            if isinstance(event, EngineError):
                finished[key] = Finished(event, time.monotonic() - started)
                continue
            deltas[key].append(event)
            if event.finish_reason:
                finished[key] = Finished(completion_of(deltas[key]), time.monotonic() - started)
    return [finished[index] for index in range(len(requests))]


def generate_all(scheduler: Scheduler, requests: Sequence[GenerationRequest]) -> list[Completion]:
    """Run requests to their end and return their answers in the order of the requests; see `finish_all`.

    Raises:
        EngineError: A request failed. The answers of the others are lost.
    """
    completions = []
    for each in finish_all(scheduler, requests):
        if isinstance(each.result, EngineError):
            raise each.result
        completions.append(each.result)
    return completions


def completion_of(deltas: Sequence[TokenDelta]) -> Completion:
    """Join the deltas of one finished answer."""
    whole = join_deltas(deltas)
    if whole.finish_reason is None:
        raise GenerationFailedError("the answer has no end")
    return Completion(whole.text, whole.token_ids, whole.finish_reason, whole.logprobs)


def load_alone(folder: Path, num_threads: int) -> tuple[LlavaForConditionalGeneration, Inputs, Tokenizer]:
    """Load a model, onto the GPU if there is one, and set the compute threads of this process.

    Raises:
        ReleaseError: The folder does not load.
    """
    torch.set_num_threads(max(1, num_threads))
    model, inputs, tokenizer_json = load_bundle(folder)
    placed = model.to("cuda") if torch.cuda.is_available() else model
    return placed, inputs, tokenizer_from_json(tokenizer_json)


class OfflineGenerator:
    """A model that answers batches of prompts greedily; made for one actor of a batch job.

    Args:
        folder: A model folder that Warren wrote.
        num_threads: Compute threads of this process.

    Raises:
        ReleaseError: The folder does not load.
    """

    def __init__(self, folder: Path, num_threads: int = 1) -> None:
        self._model, self.inputs, self._tokenizer = load_alone(folder, num_threads)
        self._scheduler: Scheduler | None = None

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int) -> list[str]:
        """Return one answer per prompt, white space around it removed.

        Raises:
            BadSampleError: A prompt's images cannot be used.
            EngineError: A prompt is too long for the model, or the model failed.
        """
        return self.answer([self.prepare(prompt, max_new_tokens) for prompt in prompts])

    def prepare(self, prompt: Prompt, max_new_tokens: int) -> GenerationRequest:
        """Tokenise a prompt and decode its images. Everything that can fail because of the prompt fails here.

        Raises:
            BadSampleError: The prompt's images cannot be used.
            RequestRefusedError: The prompt is too long for the model.
        """
        sampling = SamplingParams(max_new_tokens=max_new_tokens)
        request = encode_request(prompt, self.inputs, self._tokenizer, sampling)
        check_request(request, self.inputs.tokens, self.max_context_tokens)
        return request

    def answer(self, requests: Sequence[GenerationRequest]) -> list[str]:
        """Return one answer per prepared prompt, white space around it removed.

        Raises:
            EngineError: The model failed.
        """
        if not requests:
            return []
        longest = max(len(request.prompt_ids) + request.sampling.max_new_tokens for request in requests)
        return [done.text.strip() for done in generate_all(self._scheduler_for(longest), requests)]

    def encode(self, text: str, pixels: np.ndarray, max_new_tokens: int) -> GenerationRequest:
        """Tokenise one user's turn whose images are decoded; the answer may be as long as the free context, at most.

        Args:
            text: With one image mark for each image.
            pixels: uint8 (num_images, 3, size_px, size_px).
            max_new_tokens: Longest answer; lowered to what the context has room for, as the endpoint does.

        Raises:
            BadSampleError: Marks and images differ in number.
            RequestRefusedError: The prompt is too long for the model.
        """
        ids = self.inputs.encode_prompt((Turn("user", text),), self._tokenizer, len(pixels))
        room = max(1, self.max_context_tokens - len(ids))
        request = GenerationRequest(ids, pixels, SamplingParams(max_new_tokens=min(max_new_tokens, room)))
        check_request(request, self.inputs.tokens, self.max_context_tokens)
        return request

    def finish_apart(self, requests: Sequence[GenerationRequest]) -> list[Finished]:
        """Answer requests in a scheduler of their own, so that the answers depend on these requests and nothing else.

        The last bits of a logit depend on what is computed beside it: on the other requests, on the size of the cache
        and on which images' features are cached. Here, the requests decide all of that.

        Raises:
            EngineError: The model failed for all requests.
        """
        if not requests:
            return []
        self._scheduler = None  # its cache's memory is free before another one's is taken
        longest = max(len(request.prompt_ids) + request.sampling.max_new_tokens for request in requests)
        return finish_all(self._new_scheduler(longest), requests)

    @property
    def max_context_tokens(self) -> int:
        """Most tokens of prompt and answer together."""
        return context_limit(self._model.config, None)

    def _scheduler_for(self, num_tokens: int) -> Scheduler:
        if self._scheduler is None or self._scheduler.max_context_tokens < num_tokens:
            self._scheduler = self._new_scheduler(num_tokens)
        return self._scheduler

    def _new_scheduler(self, num_tokens: int) -> Scheduler:
        context = min(self.max_context_tokens, -(-num_tokens // _CONTEXT_STEP) * _CONTEXT_STEP)
        affordable = _KV_BYTES // (kv_bytes_per_token(self._model) * context)
        options = EngineOptions(
            num_slots=max(1, min(_MAX_SLOTS, affordable)),
            max_context_tokens=context,
            prefill_budget_tokens=_PREFILL_BUDGET_TOKENS,
            step_budget_tokens=10 * _PREFILL_BUDGET_TOKENS,  # the gaps between tokens do not matter here
        )
        return Scheduler(self._model, self.inputs, self._tokenizer, options)
