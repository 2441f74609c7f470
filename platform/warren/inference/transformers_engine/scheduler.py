"""Continuous batching: in one forward pass, a step decodes a token for every running row and reads a chunk of prompts.

Rows are dense in the cache: decoding rows come first, then at most one row whose prompt is partly read. The last row
takes the slot of a row that finishes. Nothing here knows threads or event loops.
"""

import logging
from collections import deque
from collections.abc import Sequence
from itertools import pairwise

import torch
from tokenizers import Tokenizer
from transformers import LlavaForConditionalGeneration

from warren.data.model_inputs import Inputs
from warren.inference.detokenize import detokenizer_of
from warren.inference.engine import (
    EngineError,
    EngineStats,
    Event,
    FinishReason,
    GenerationFailedError,
    GenerationRequest,
    TokenDelta,
)
from warren.inference.engine_options import EngineOptions, check_kv_bytes, context_limit
from warren.inference.transformers_engine.model_runner import BatchRow, ModelRunner, PrefillPlan
from warren.inference.transformers_engine.sampling import SampledToken, Sampler, choose
from warren.inference.transformers_engine.slot_cache import SlotCache
from warren.models.head import unsampled_ids

logger = logging.getLogger(__name__)

MAX_FAILURES_IN_A_ROW = 8
"""After this many failed forward passes in a row, the engine is broken, and not the requests."""


class Scheduler:
    """The running and waiting requests of one model.

    Args:
        model: In evaluation mode, on its device.
        inputs: The model's prompt template, special tokens and image preprocessing.
        tokenizer: The model's tokenizer.
        options: The engine's size.

    Raises:
        ConfigError: The options do not fit the model.
    """

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        inputs: Inputs,
        tokenizer: Tokenizer,
        options: EngineOptions,
    ) -> None:
        self.options = options
        self.max_context_tokens = context_limit(model.config, options.max_context_tokens)
        check_kv_bytes(model, options, self.max_context_tokens)
        self._tokenizer = tokenizer
        self._eos_id = tokenizer.token_to_id(inputs.tokens.eos_token)
        self._cache = SlotCache(options.num_slots, self.max_context_tokens)
        self._runner = ModelRunner(model, inputs, self._cache, options.image_cache_bytes)
        unsampled = unsampled_ids(tokenizer, model.lm_head.weight.shape[0], inputs.tokens.image_token_id)
        self._unsampled = torch.tensor(unsampled, device=self._runner.device)
        self._rows: list[BatchRow] = []
        self._num_decoding = 0
        self._waiting: deque[BatchRow] = deque()
        self._failures_in_a_row = 0
        self._counts = dict.fromkeys(("prompt", "generated", "finished", "cancelled", "failed"), 0)

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._rows or self._waiting)

    def add(self, key: int, request: GenerationRequest) -> None:
        """Queue a request that passed `check_request`; later steps return its deltas under `key`."""
        sampling = request.sampling
        sampler = Sampler(sampling, request.prompt_ids)
        detokenizer = detokenizer_of(request, self._tokenizer)
        self._waiting.append(BatchRow(key, request, sampler, detokenizer, self._runner.costs_of(request.prompt_ids)))

    # In inference mode, because freeing a slot moves others, and tensors made in this mode can only be written in it.
    @torch.inference_mode()
    def cancel(self, key: int) -> bool:
        """Drop a request and free its slot; returns whether it was running or waiting."""
        for row in self._waiting:
            if row.key == key:
                self._waiting.remove(row)
                break
        else:
            index = next((i for i, row in enumerate(self._rows) if row.key == key), None)
            if index is None:
                return False
            self._remove(index)
        self._counts["cancelled"] += 1
        return True

    @torch.inference_mode()
    def step(self) -> list[Event]:
        """Advance every running row by one token, and read the next chunk of prompts in the same forward pass.

        Raises:
            EngineError: Too many forward passes failed in a row; the engine is broken.
        """
        events: list[Event] = []
        decoding, plan = self._rows[: self._num_decoding], self._plan_prefill()
        if decoding or plan:
            self._pass(decoding, plan, events)
        if self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
            raise EngineError(f"{self._failures_in_a_row} forward passes failed one after another")
        return events

    def stats(self) -> EngineStats:
        """Return counts; callable from any thread."""
        used = sum(row.length for row in list(self._rows))
        return EngineStats(
            num_slots=self.options.num_slots,
            num_running=len(self._rows),
            num_waiting=len(self._waiting),
            max_context_tokens=self.max_context_tokens,
            kv_bytes=self._cache.num_bytes,
            kv_used_tokens=used,
            kv_capacity_tokens=self.options.num_slots * self.max_context_tokens,
            image_cache_bytes=self._runner.features.num_bytes,
            image_cache_hits=self._runner.features.hits,
            image_cache_misses=self._runner.features.misses,
            num_prompt_tokens=self._counts["prompt"],
            num_generated_tokens=self._counts["generated"],
            num_finished=self._counts["finished"],
            num_cancelled=self._counts["cancelled"],
            num_failed=self._counts["failed"],
        )

    def _pass(self, decoding: list[BatchRow], plan: PrefillPlan, events: list[Event]) -> None:
        before = [(row, row.length) for row in (*decoding, *(row for row, _ in plan))]
        try:
            logits = self._runner.run(decoding, plan, self._num_decoding)
            sampled = [*decoding, *(row for row, _ in plan if not row.num_unread)]
            tokens = choose(logits, [row.sampler for row in sampled], self._unsampled)
        except Exception as error:
            # Sampling may have failed after the rows were advanced; they are run again from where they were.
            for row, length in before:
                row.length = length
            if len(plan) + bool(decoding) == 1:
                self._fail(decoding or [plan[0][0]], error, events)
            else:
                self._pass_apart(decoding, plan, events)
            return
        self._counts["prompt"] += sum(count for _, count in plan)
        for row in sampled[len(decoding) :]:
            row.features.clear()
        self._num_decoding += len(sampled) - len(decoding)
        self._settle(sampled, tokens, events)

    def _pass_apart(self, decoding: list[BatchRow], plan: PrefillPlan, events: list[Event]) -> None:
        """Repeat a failed pass row by row, so that only the request at fault fails."""
        # Rows that have no token in the cache yet are added again below, one at a time.
        self._rows = [row for row in self._rows if row in decoding or row.length]
        if decoding:
            self._pass(decoding, [], events)
        for row, count in plan:
            if row not in self._rows:
                self._rows.append(row)
            self._pass([], [(row, count)], events)

    def _plan_prefill(self) -> PrefillPlan:
        """Give slots to waiting rows, and return what this step reads. Only the last row may be read in part."""
        budget = self.options.readable_tokens(self._num_decoding, self._runner.device)
        plan: list[tuple[BatchRow, int]] = []
        for row in self._rows[self._num_decoding :]:
            # At least one token, because an image's first token can cost more than any budget.
            plan.append((row, count := row.affordable(budget) or 1))
            budget -= row.cost(count)
        while self._waiting and len(self._rows) < self.options.num_slots and all(n == r.num_unread for r, n in plan):
            row = self._waiting[0]
            # Only the first prompt of a step may exceed the budget; the next ones wait for a step of their own.
            count = row.affordable(budget) or (0 if plan else 1)
            if not count:
                break
            self._rows.append(self._waiting.popleft())
            plan.append((row, count))
            budget -= row.cost(count)
        return plan

    def _settle(self, rows: Sequence[BatchRow], tokens: Sequence[SampledToken | None], events: list[Event]) -> None:
        """Turn sampled tokens into events and free the rows that ended."""
        self._failures_in_a_row = 0
        for row, token in zip(rows, tokens, strict=True):
            if token is None:
                # The next request in this slot must not read what is not finite.
                self._cache.clear(self._rows.index(row))
                self._drop(row, GenerationFailedError("the model's logits are not finite"), events)
                continue
            delta = self._advance(row, token)
            events.append((row.key, delta))
            if delta.finish_reason:
                self._counts["finished"] += 1
                self._remove(self._rows.index(row))

    def _advance(self, row: BatchRow, token: SampledToken) -> TokenDelta:
        sampling, token_id = row.request.sampling, token.token_id
        row.next_token = token_id
        row.num_generated += 1
        self._counts["generated"] += 1
        ended = token_id == self._eos_id and not sampling.ignore_eos
        text = "" if ended else row.detokenizer.push(token_id)
        reason: FinishReason | None = None
        if ended or row.detokenizer.is_stopped:
            reason = "stop"
        elif row.num_generated == sampling.max_new_tokens:
            reason = "length"
        if reason:
            text += row.detokenizer.flush()
            reason = "stop" if row.detokenizer.is_stopped else reason
        return TokenDelta(text, (token_id,), (token.logprob,) if token.logprob else (), reason)

    def _fail(self, rows: Sequence[BatchRow], error: Exception, events: list[Event]) -> None:
        self._failures_in_a_row += 1
        logger.error("a forward pass of %d requests failed", len(rows), exc_info=error)
        for row in list(rows):
            self._cache.clear(self._rows.index(row))
            self._drop(row, GenerationFailedError("the request failed inside the model"), events)

    def _drop(self, row: BatchRow, error: EngineError, events: list[Event]) -> None:
        self._counts["failed"] += 1
        self._remove(self._rows.index(row))
        events.append((row.key, error))

    def _remove(self, index: int) -> None:
        """Free a row's slot. The last decoding row moves into it, and the row being prefilled into that one's slot."""
        holes = [index]
        if index < self._num_decoding:
            self._num_decoding -= 1
            holes = [index, self._num_decoding]
        holes.append(len(self._rows) - 1)
        for target, source in pairwise(holes):
            self._rows[target] = self._rows[source]
            self._cache.move(source, target, self._rows[source].length)
        self._rows.pop()
