"""How much one engine holds: its options, and what the model itself allows."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from warren.data.template import TokenSpec
from warren.errors import ConfigError
from warren.inference.engine import GenerationRequest, RequestRefusedError

if TYPE_CHECKING:
    import torch
    from transformers import LlavaForConditionalGeneration

_SMALLEST_READ_TOKENS = 16
"""Prompts come to their end however many answers run."""

_ANSWER_COST_TOKENS = 2
"""The next token of an answer takes a CPU about twice as long as a prompt's: it attends to all before it, and is chosen
from the whole vocabulary. Counted so, steps take about as long however many answers run."""

_CPU_STEP_TOKENS = 96
"""Gaps between tokens no longer than those of static batches; docs/benchmarks.md has what more of it gives."""


@dataclass(frozen=True)
class EngineOptions:
    """The size of an engine.

    Attributes:
        num_slots: Requests that run at the same time; each owns one slot of the cache.
        max_context_tokens: Prompt and answer together; None for what the model was made for.
        prefill_budget_tokens: Prompt tokens that one step may read; an image counts as the tokens that take as long.
        step_budget_tokens: The same while answers run, each of which counts as two: the more run, the less is read
            beside them, so that their tokens come evenly. Small keeps the gaps short, large starts bursts sooner. None
            for 96 on a CPU, and for no bound of its own on a GPU, where some hundred tokens more take hardly longer.
        max_waiting: Requests that wait for a slot; more are refused.
        image_cache_bytes: Visual features kept for repeated images.
        max_kv_bytes: Upper limit of keys and values; None for none.
    """

    num_slots: int = 8
    max_context_tokens: int | None = None
    prefill_budget_tokens: int = 512
    step_budget_tokens: int | None = None
    max_waiting: int = 64
    image_cache_bytes: int = 256 << 20
    max_kv_bytes: int | None = None

    def readable_tokens(self, num_decoding: int, device: "torch.device") -> int:
        """Return how many prompt tokens a step reads while so many answers run."""
        budget = self.step_budget_tokens
        if budget is None and device.type == "cpu":
            budget = _CPU_STEP_TOKENS
        if budget is None or not num_decoding:
            return self.prefill_budget_tokens
        return min(self.prefill_budget_tokens, max(_SMALLEST_READ_TOKENS, budget - _ANSWER_COST_TOKENS * num_decoding))

    def __post_init__(self) -> None:
        for name in ("num_slots", "prefill_budget_tokens", "step_budget_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}")
        for name in ("max_waiting", "image_cache_bytes"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, not {getattr(self, name)}")


def context_limit(config: Any, asked: int | None) -> int:
    """Return the most tokens of prompt and answer that a slot holds.

    Beyond a sliding window the engine's mask would be wrong, and beyond the original length a dynamic or long
    rotary embedding of one row would change its neighbours' (transformers rescales it by the longest row).

    Args:
        config: The model's configuration; no weights are needed.
        asked: None for all that the model allows.

    Raises:
        ConfigError: More is asked for than the model allows.
    """
    text: Any = config.text_config
    limit = int(text.max_position_embeddings)
    window = getattr(text, "sliding_window", None)
    kinds = getattr(text, "layer_types", None) or ["sliding_attention"]
    if window and "sliding_attention" in kinds and getattr(text, "use_sliding_window", True):
        limit = min(limit, int(window))
    limit = min(limit, _fixed_rotary_length(text, limit))
    if asked is not None and asked > limit:
        raise ConfigError(f"max_context_tokens is {asked}; this model allows at most {limit}")
    return asked or limit


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
    """Refuse a request that can never run.

    Raises:
        RequestRefusedError: Empty, too long, or its image tokens do not fit its images.
    """
    length, new = len(request.prompt_ids), request.sampling.max_new_tokens
    if not length or new < 1:
        raise RequestRefusedError(f"{length} prompt tokens and {new} new tokens: both must be at least 1")
    if length + new > max_context_tokens:
        raise RequestRefusedError(
            f"{length} prompt tokens and {new} new tokens; together at most {max_context_tokens} fit"
        )
    image_tokens = int((request.prompt_ids == tokens.image_token_id).sum())
    if image_tokens != len(request.pixels) * tokens.tokens_per_image:
        raise RequestRefusedError(
            f"{image_tokens} image tokens in the prompt; {len(request.pixels)} images of "
            f"{tokens.tokens_per_image} tokens need another number"
        )


def _fixed_rotary_length(text: Any, limit: int) -> int:
    rotary = getattr(text, "rope_parameters", None) or {}
    if rotary.get("rope_type") not in ("longrope", "dynamic"):
        return limit
    original = rotary.get("original_max_position_embeddings")
    return int(original or getattr(text, "original_max_position_embeddings", None) or limit)
