"""Generation for batch jobs: everything is known at once, so nothing waits and no thread is needed."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlavaForConditionalGeneration

from warren.data.model_inputs import Inputs, tokenizer_from_json
from warren.inference.engine import (
    Completion,
    EngineError,
    GenerationFailedError,
    GenerationRequest,
    SamplingParams,
    TokenDelta,
    join_deltas,
)
from warren.inference.limits import EngineOptions, check_request, context_limit, kv_bytes_per_token
from warren.inference.prompts import Prompt, encode_request
from warren.inference.transformers_engine.scheduler import Scheduler
from warren.models import load_bundle

_MAX_SLOTS = 64
_KV_BYTES = 1 << 30
_PREFILL_BUDGET_TOKENS = 8192
_CONTEXT_STEP = 64  # contexts are rounded up to it, so that batches of about one length share a cache


def generate_all(batch: Scheduler, requests: Sequence[GenerationRequest]) -> list[Completion]:
    """Run requests to their end, longest prompts first; returns their answers in the order given.

    Raises:
        EngineError: A request cannot run on this batch, or failed. What the others gave is lost.
    """
    order = sorted(range(len(requests)), key=lambda index: -len(requests[index].prompt_ids))
    for index in order:
        batch.add(index, requests[index])
    deltas: list[list[TokenDelta]] = [[] for _ in requests]
    failure: EngineError | None = None
    while batch.has_work:
        for key, event in batch.step():
            if isinstance(event, TokenDelta):
                deltas[key].append(event)
            else:
                failure = failure or event
    if failure:
        raise failure
    return [completion_of(parts) for parts in deltas]


def completion_of(deltas: Sequence[TokenDelta]) -> Completion:
    """Join the deltas of one finished answer."""
    whole = join_deltas(deltas)
    if whole.finish_reason is None:
        raise GenerationFailedError("the answer has no end")
    return Completion(whole.text, whole.token_ids, whole.finish_reason, whole.logprobs)


def load_alone(folder: Path, num_threads: int) -> tuple[LlavaForConditionalGeneration, Inputs, Tokenizer]:
    """Load a model for a process that does nothing else, on its GPU if it has one.

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
        self._batch: Scheduler | None = None

    def generate(self, prompts: Sequence[Prompt], max_new_tokens: int) -> list[str]:
        """Return one answer per prompt, white space around it removed.

        Raises:
            BadSampleError: A prompt's images cannot be used.
            EngineError: A prompt is too long for the model, or the model failed.
        """
        return self.answer([self.prepare(prompt, max_new_tokens) for prompt in prompts])

    def prepare(self, prompt: Prompt, max_new_tokens: int) -> GenerationRequest:
        """Tokenise a prompt and decode its images: all that can fail because of the prompt.

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
        return [done.text.strip() for done in generate_all(self._batch_for(longest), requests)]

    @property
    def max_context_tokens(self) -> int:
        """Prompt and answer together."""
        return context_limit(self._model.config, None)

    def _batch_for(self, num_tokens: int) -> Scheduler:
        if self._batch is None or self._batch.max_context_tokens < num_tokens:
            context = min(self.max_context_tokens, -(-num_tokens // _CONTEXT_STEP) * _CONTEXT_STEP)
            affordable = _KV_BYTES // (kv_bytes_per_token(self._model) * context)
            options = EngineOptions(
                num_slots=max(1, min(_MAX_SLOTS, affordable)),
                max_context_tokens=context,
                prefill_budget_tokens=_PREFILL_BUDGET_TOKENS,
                step_budget_tokens=10 * _PREFILL_BUDGET_TOKENS,  # nobody watches
            )
            self._batch = Scheduler(self._model, self.inputs, self._tokenizer, options)
        return self._batch
