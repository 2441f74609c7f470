"""The size of an engine: its options, the limits of the model, and the check of a request against them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from warren.data.template import TokenSpec
from warren.errors import ConfigError
from warren.inference.engine import GenerationRequest, RequestRefusedError

if TYPE_CHECKING:
    import torch
    from transformers import LlavaForConditionalGeneration

_MIN_PREFILL_TOKENS = 16
"""Minimum prefill tokens per step, so that prefill never starves while many answers run."""

_DECODE_COST_TOKENS = 2
"""What decoding one token costs, in prefill tokens. A CPU takes about twice as long for it, because it attends to the
whole context and its logits are computed over the whole vocabulary. With this cost, steps take about equally long."""

_CPU_STEP_TOKENS = 96
"""Keeps the gaps between tokens as short as static batches have them; docs/benchmarks.md measures larger values."""


@dataclass(frozen=True)
class EngineOptions:
    """The size of an engine.

    Attributes:
        num_slots: Requests that run at the same time; each owns one slot of the key/value cache.
        max_context_tokens: Prompt and answer together; None takes the model's own limit.
        prefill_budget_tokens: Prompt tokens that one step may read. An image counts as the number of tokens that take
            as long.
        step_budget_tokens: The same while answers run, each of which counts as two tokens. Small values keep the gaps
            between tokens short, large ones start new answers sooner. None is 96 on a CPU; on a GPU, where a hundred
            tokens more hardly take longer, it sets no bound.
        max_waiting: Requests that wait for a slot; more are refused.
        image_cache_bytes: Memory for the visual features of repeated images.
        max_kv_bytes: Upper limit of the key/value cache; None sets none.
    """

    num_slots: int = 8
    max_context_tokens: int | None = None
    prefill_budget_tokens: int = 512
    step_budget_tokens: int | None = None
    max_waiting: int = 64
    image_cache_bytes: int = 256 << 20
    max_kv_bytes: int | None = None

    def readable_tokens(self, num_decoding: int, device: "torch.device") -> int:
        """Return how many prompt tokens a step may read while `num_decoding` answers run."""
        budget = self.step_budget_tokens
        if budget is None and device.type == "cpu":
            budget = _CPU_STEP_TOKENS
        if budget is None or not num_decoding:
            return self.prefill_budget_tokens
        return min(self.prefill_budget_tokens, max(_MIN_PREFILL_TOKENS, budget - _DECODE_COST_TOKENS * num_decoding))

    def __post_init__(self) -> None:
        for name in ("num_slots", "prefill_budget_tokens", "step_budget_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}")
        for name in ("max_waiting", "image_cache_bytes"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, not {getattr(self, name)}")


def context_limit(config: Any, requested: int | None) -> int:
    """Return the most tokens of prompt and answer that a slot holds.

    Beyond a sliding window the engine's mask would be wrong. Beyond the original length of a dynamic or long rotary
    embedding, transformers rescales it by the longest row, so one row would change its neighbours.

    Args:
        config: The model's configuration; no weights are needed.
        requested: None takes the model's own limit.

    Raises:
        ConfigError: `requested` is more than the model allows.
    """
    text: Any = config.text_config
    limit = int(text.max_position_embeddings)
    window = getattr(text, "sliding_window", None)
    kinds = getattr(text, "layer_types", None) or ["sliding_attention"]
    if window and "sliding_attention" in kinds and getattr(text, "use_sliding_window", True):
        limit = min(limit, int(window))
    limit = min(limit, _fixed_rotary_length(text, limit))
    if requested is not None and requested > limit:
        raise ConfigError(f"max_context_tokens is {requested}; this model allows at most {limit}: lower it, or omit it")
    return requested or limit


def kv_bytes_per_token(model: "LlavaForConditionalGeneration") -> int:
    """Return the bytes of keys and values that one token of one request takes."""
    text: Any = model.config.text_config
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(2 * text.num_hidden_layers * heads * dim * model.lm_head.weight.element_size())


def check_kv_bytes(model: "LlavaForConditionalGeneration", options: EngineOptions, context_tokens: int) -> None:
    """Refuse options whose slots need more memory than they allow.

    Raises:
        ConfigError: With both numbers.
    """
    needed = kv_bytes_per_token(model) * options.num_slots * context_tokens
    if options.max_kv_bytes is not None and needed > options.max_kv_bytes:
        raise ConfigError(
            f"{options.num_slots} slots of {context_tokens} tokens need {needed} bytes of keys and values; "
            f"max_kv_bytes is {options.max_kv_bytes}: lower num_slots or max_context_tokens"
        )


def check_request(request: GenerationRequest, tokens: TokenSpec, max_context_tokens: int) -> None:
    """Refuse a request that can never run. Whoever takes requests in calls this once; what is behind it trusts them.

    Raises:
        RequestRefusedError: The request is empty or too long, or its image tokens do not match its images.
    """
    num_prompt, num_new = len(request.prompt_ids), request.sampling.max_new_tokens
    if not num_prompt or num_new < 1:
        raise RequestRefusedError(f"{num_prompt} prompt tokens and {num_new} new tokens: both must be at least 1")
    if num_prompt + num_new > max_context_tokens:
        raise RequestRefusedError(
            f"{num_prompt} prompt tokens and {num_new} new tokens; the context holds {max_context_tokens}: "
            "shorten the prompt or lower max_new_tokens"
        )
    num_image_tokens = int((request.prompt_ids == tokens.image_token_id).sum())
    num_needed = len(request.pixels) * tokens.tokens_per_image
    if num_image_tokens != num_needed:
        raise RequestRefusedError(
            f"{num_image_tokens} image tokens in the prompt; {len(request.pixels)} images need {num_needed}: "
            "encode the prompt with as many image marks as images"
        )


def _fixed_rotary_length(text: Any, limit: int) -> int:
    rotary = getattr(text, "rope_parameters", None) or {}
    if rotary.get("rope_type") not in ("longrope", "dynamic"):
        return limit
    original = rotary.get("original_max_position_embeddings")
    return int(original or getattr(text, "original_max_position_embeddings", None) or limit)
