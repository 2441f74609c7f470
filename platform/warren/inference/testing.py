"""For tests of code that uses an engine: tiny random models, and an engine that answers from a script."""

import asyncio
import io
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer

from warren.config import LanguageModelConfig, ModelConfig, TokenizerConfig, VisionTowerConfig
from warren.data.model_inputs import Inputs
from warren.inference.engine import (
    EngineBusyError,
    EngineClosedError,
    EngineError,
    EngineStats,
    GenerationRequest,
    RequestRefusedError,
    TokenDelta,
)
from warren.models import build_model, inputs_of, save_model, train_tokenizer

_TEXTS = (
    "USER: what shape is there? ASSISTANT: a blue circle",
    "yes no red green 0123456789 naïve café 日本 🙂",
)


def save_random_model(
    folder: Path,
    model_type: str = "qwen2",
    seed: int = 0,
    tower: Mapping[str, Any] = MappingProxyType({}),
    texts: Sequence[str] = _TEXTS * 5,
    vocab_size: int = 400,
    **text_config: Any,
) -> None:
    """Write a model of random weights that answers in milliseconds; its tokens are diverse, its text noise.

    Args:
        folder: Where it goes; made if needed.
        model_type: A language-model family of transformers.
        seed: Of its weights.
        tower: Changes to the vision tower's configuration.
        texts: What the tokenizer is trained on.
        vocab_size: Of the tokenizer, at most.
        text_config: Changes to the language model's configuration.
    """
    text: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4 if model_type == "phi" else 2,
        "max_position_embeddings": 256,
    }
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    config = ModelConfig(
        vision_tower=VisionTowerConfig(family="siglip", config=vision | dict(tower)),
        language_model=LanguageModelConfig(model_type=model_type, config=text | text_config),
        tokenizer=TokenizerConfig(train_vocab_size=vocab_size),
        template="brief",
    )
    tokenizer = train_tokenizer(texts, vocab_size)
    model = build_model(config, tokenizer, seed)
    # transformers' small initial weights would give one repeated token, whatever the prompt and the image.
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("embed_tokens.weight", "lm_head.weight")):
                weight.normal_(0.0, 1.0, generator=generator)
            elif weight.ndim > 1:
                weight.normal_(0.0, 1.5 * weight[0].numel() ** -0.5, generator=generator)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(model.state_dict(), model.config, inputs_of(config, tokenizer), tokenizer.json, folder)


def png_bytes(color: tuple[int, int, int] = (200, 30, 30), size: tuple[int, int] = (32, 32)) -> bytes:
    """Return a one-coloured PNG."""
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


class ScriptedEngine:
    """An `Engine` without a model.

    Args:
        script: Returns the deltas, or the error, that answer a request; called once per request.
        inputs: A model's; None for an engine whose requests are encoded already.
        tokenizer: See `inputs`.
        max_requests: More at a time are refused as busy.
        delay_s: The time before every delta.
        max_context_tokens: Most tokens of prompt and answer together.
    """

    def __init__(
        self,
        script: Callable[[GenerationRequest], Sequence[TokenDelta | EngineError]],
        inputs: Inputs | None = None,
        tokenizer: Tokenizer | None = None,
        max_requests: int = 8,
        delay_s: float = 0.0,
        max_context_tokens: int = 256,
    ) -> None:
        self._script = script
        self._max_requests = max_requests
        self._delay_s = delay_s
        self._inputs, self._tokenizer = inputs, tokenizer
        self.max_context_tokens = max_context_tokens
        self.is_alive = True
        self.num_running = 0
        self.num_aborted = 0
        self.requests: list[GenerationRequest] = []

    @property
    def inputs(self) -> Inputs:
        """See `Engine.inputs`."""
        assert self._inputs is not None, "this engine was made without inputs"
        return self._inputs

    @property
    def tokenizer(self) -> Tokenizer:
        """See `Engine.tokenizer`."""
        assert self._tokenizer is not None, "this engine was made without a tokenizer"
        return self._tokenizer

    def submit(self, request: GenerationRequest) -> "ScriptedStream":
        """See `Engine.submit`."""
        if not self.is_alive:
            raise EngineClosedError("the engine no longer runs")
        if self.num_running >= self._max_requests:
            raise EngineBusyError(f"{self.num_running} requests are running")
        if len(request.prompt_ids) + request.sampling.max_new_tokens > self.max_context_tokens:
            raise RequestRefusedError("too long")
        self.requests.append(request)
        self.num_running += 1
        return ScriptedStream(self, self._script(request), self._delay_s)

    def stats(self) -> EngineStats:
        """Return counters; those that need a model are 0."""
        counts = dict.fromkeys(EngineStats.__dataclass_fields__, 0)
        counts |= {"num_slots": self._max_requests, "num_running": self.num_running}
        return EngineStats(**counts | {"num_cancelled": self.num_aborted})

    def close(self) -> None:
        """Refuse everything from now on."""
        self.is_alive = False


class ScriptedStream:
    """The scripted answer to one request."""

    def __init__(self, engine: ScriptedEngine, script: Sequence[TokenDelta | EngineError], delay_s: float) -> None:
        self._engine, self._script, self._delay_s = engine, list(script), delay_s
        self._ended = False

    def __aiter__(self) -> AsyncIterator[TokenDelta]:
        return self

    async def __anext__(self) -> TokenDelta:
        if self._ended or not self._script:
            raise StopAsyncIteration
        await asyncio.sleep(self._delay_s)
        result = self._script.pop(0)
        if isinstance(result, EngineError) or result.finish_reason:
            self._end()
        if isinstance(result, EngineError):
            raise result
        return result

    def abort(self) -> None:
        """End the request; harmless after the end."""
        if not self._ended:
            self._engine.num_aborted += 1
            self._end()

    def _end(self) -> None:
        self._ended = True
        self._engine.num_running -= 1
