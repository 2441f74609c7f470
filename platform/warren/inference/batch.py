"""Continuous batching: a step decodes a token for every running row and reads a bounded piece of new prompts.

Rows are dense in the cache: decoding rows come first, then at most one row whose prompt is partly read. A
finished row is replaced by the last one. Nothing here knows threads or event loops.
"""

import logging
from collections import deque
from collections.abc import Sequence
from itertools import pairwise

import torch
from tokenizers import Tokenizer
from transformers import LlavaForConditionalGeneration

from warren.data.inputs import Inputs
from warren.inference.cache import SlotCache
from warren.inference.detokenize import Detokenizer
from warren.inference.engine import (
    EngineError,
    EngineStats,
    FinishReason,
    GenerationFailedError,
    GenerationRequest,
    TokenDelta,
)
from warren.inference.limits import EngineOptions, check_kv_bytes, check_request, context_limit
from warren.inference.runner import Row, Runner
from warren.inference.sampling import Choice, Sampler, choose

logger = logging.getLogger(__name__)

MAX_FAILURES_IN_A_ROW = 8
"""So many failed passes without one that works mean that the engine is broken, not the requests."""

Event = tuple[int, TokenDelta | EngineError]
Plan = list[tuple[Row, int]]
"""Rows and how many prompt tokens of each are read next."""


class Batch:
    """The requests running on one model.

    Args:
        model: In evaluation mode, on its device.
        inputs: What it was trained on.
        tokenizer: Its tokenizer.
        options: How much to hold.

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
        self._tokens = inputs.tokens
        self._eos_id = tokenizer.token_to_id(inputs.tokens.eos_token)
        self._cache = SlotCache(options.num_slots, self.max_context_tokens)
        self._runner = Runner(model, inputs, self._cache, options.image_cache_bytes)
        self._rows: list[Row] = []
        self._num_decoding = 0
        self._waiting: deque[Row] = deque()
        self._failures_in_a_row = 0
        self._counts = dict.fromkeys(("prompt", "generated", "finished", "cancelled", "failed"), 0)

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._rows or self._waiting)

    def check(self, request: GenerationRequest) -> None:
        """Refuse a request that can never run here.

        Raises:
            RequestRefusedError: Empty, too long, or its image tokens do not fit its images.
        """
        check_request(request, self._tokens, self.max_context_tokens)

    def add(self, key: int, request: GenerationRequest) -> None:
        """Queue a request; its deltas come from later steps under `key`.

        Raises:
            RequestRefusedError: It can never run here.
        """
        self.check(request)
        sampling = request.sampling
        sampler = Sampler(sampling, request.prompt_ids)
        self._waiting.append(Row(key, request, sampler, Detokenizer(self._tokenizer, sampling.stop)))

    @torch.inference_mode()
    def cancel(self, key: int) -> bool:
        """Drop a request and free its slot; returns whether it was there."""
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
        """Advance every running row by one token, then read the next piece of waiting prompts.

        Raises:
            EngineError: Pass after pass fails: the engine is broken.
        """
        events: list[Event] = []
        if self._num_decoding:
            self._decode(events)
        if self.has_work:
            self._prefill(events)
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

    def _decode(self, events: list[Event]) -> None:
        rows = self._rows[: self._num_decoding]
        try:
            choices = choose(self._runner.decode(rows), [row.sampler for row in rows])
        except Exception as error:
            self._fail(rows, error, events)
        else:
            self._settle(rows, choices, events)

    def _prefill(self, events: list[Event]) -> None:
        plan = self._plan_prefill()
        starts = [row.length for row, _ in plan]
        try:
            if plan:
                self._read(plan, events)
        except Exception as error:
            if len(plan) == 1:
                self._fail([plan[0][0]], error, events)
            else:
                self._read_singly(plan, starts, events)

    def _read_singly(self, plan: Plan, starts: Sequence[int], events: list[Event]) -> None:
        """Read again one by one what failed together: one request is at fault, the others go on."""
        del self._rows[self._num_decoding :]
        for (row, count), start in zip(plan, starts, strict=True):
            row.length = start
            self._rows.append(row)
            try:
                self._read([(row, count)], events)
            except Exception as error:
                self._fail([row], error, events)

    def _read(self, plan: Plan, events: list[Event]) -> None:
        logits = self._runner.read(self._num_decoding, plan)
        done = [index for index, (row, _) in enumerate(plan) if not row.num_unread]
        rows = [plan[index][0] for index in done]
        choices = choose(logits[done], [row.sampler for row in rows])
        self._counts["prompt"] += sum(count for _, count in plan)
        for row in rows:
            row.features.clear()
        self._num_decoding += len(rows)
        self._settle(rows, choices, events)

    def _plan_prefill(self) -> Plan:
        """Give slots to waiting rows; return what this step reads. Only a lone first row is read in part."""
        budget = self.options.readable_tokens(self._num_decoding)
        plan: Plan = []
        if len(self._rows) > self._num_decoding:
            plan.append((self._rows[-1], min(self._rows[-1].num_unread, budget)))
        longest = plan[0][1] if plan else 0
        while self._waiting and len(self._rows) < self.options.num_slots:
            row = self._waiting[0]
            count = min(row.num_unread, budget) if not plan else row.num_unread
            partial = bool(plan) and plan[0][1] < plan[0][0].num_unread
            longest = max(longest, count)
            if partial or longest * (len(plan) + 1) > budget:
                break
            self._rows.append(self._waiting.popleft())
            plan.append((row, count))
        return plan

    def _settle(self, rows: Sequence[Row], choices: Sequence[Choice | None], events: list[Event]) -> None:
        """Turn choices into events and free the rows that ended."""
        self._failures_in_a_row = 0
        for row, choice in zip(rows, choices, strict=True):
            if choice is None:
                self._cache.clear(self._rows.index(row))
                self._drop(row, GenerationFailedError("the model gave numbers that are not finite"), events)
                continue
            delta = self._advance(row, choice)
            events.append((row.key, delta))
            if delta.finish_reason:
                self._counts["finished"] += 1
                self._remove(self._rows.index(row))

    def _advance(self, row: Row, choice: Choice) -> TokenDelta:
        sampling, token = row.request.sampling, choice.token_id
        row.next_token = token
        row.num_generated += 1
        self._counts["generated"] += 1
        ended = token == self._eos_id and not sampling.ignore_eos
        text = "" if ended else row.detokenizer.push(token)
        reason: FinishReason | None = None
        if ended or row.detokenizer.is_stopped:
            reason = "stop"
        elif row.num_generated == sampling.max_new_tokens:
            reason = "length"
        if reason:
            text += row.detokenizer.flush()
            reason = "stop" if row.detokenizer.is_stopped else reason
        return TokenDelta(text, (token,), (choice.logprob,) if choice.logprob else (), reason)

    def _fail(self, rows: Sequence[Row], error: Exception, events: list[Event]) -> None:
        self._failures_in_a_row += 1
        logger.error("a forward pass of %d requests failed", len(rows), exc_info=error)
        for row in list(rows):
            self._cache.clear(self._rows.index(row))
            self._drop(row, GenerationFailedError("the request failed inside the model"), events)

    def _drop(self, row: Row, error: EngineError, events: list[Event]) -> None:
        self._counts["failed"] += 1
        self._remove(self._rows.index(row))
        events.append((row.key, error))

    def _remove(self, index: int) -> None:
        """Free a row's slot: the last decoding row takes its place, the row being prefilled that one's."""
        holes = [index]
        if index < self._num_decoding:
            self._num_decoding -= 1
            holes = [index, self._num_decoding]
        holes.append(len(self._rows) - 1)
        for target, source in pairwise(holes):
            self._rows[target] = self._rows[source]
            self._cache.move(source, target, self._rows[source].length)
        self._rows.pop()
