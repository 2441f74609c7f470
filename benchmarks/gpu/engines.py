"""An engine on one device: tokens a second of many requests at once, and the time to the first token of one alone."""

import asyncio
import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
from safetensors.torch import load_file, save_file

from benchmarks.gpu.training import QWEN_0_5B
from warren.data.sample import IMAGE_MARK, Turn
from warren.inference import Engine, EngineOptions, GenerationRequest, SamplingParams, TransformersEngine
from warren.inference.testing import save_random_model
from warren.inference.vllm_engine.engine import VllmEngine

KINDS = ("transformers", "vllm")
_TOWER = {
    "image_size": 336,
    "patch_size": 14,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
}
_ALONE = 5


def has_vllm() -> bool:
    """Return whether vLLM is installed; it has an environment of its own."""
    return importlib.util.find_spec("vllm") is not None


def write_model(folder: Path, dtype: str, quick: bool) -> None:
    """Write a model of random weights: speed does not depend on what they are.

    Args:
        dtype: Of the weights, `float32` or `bfloat16`.
        quick: A tiny one, to see that everything runs.
    """
    if quick:
        save_random_model(folder, "llama", hidden_size=256)  # vLLM has no CPU kernel for heads below 32 dimensions
    else:
        save_random_model(folder, "llama", tower=_TOWER, **QWEN_0_5B)  # both engines compute Llama
    if dtype == "bfloat16":
        weights = {name: weight.bfloat16() for name, weight in load_file(folder / "model.safetensors").items()}
        save_file(weights, folder / "model.safetensors", {"format": "pt"})


def start_engine(kind: str, folder: Path, options: EngineOptions) -> Engine:
    """Start an engine; each puts its model on the GPU where there is one."""
    return VllmEngine(folder, options) if kind == "vllm" else TransformersEngine(folder, options)


def measure(engine: Engine, num_requests: int, num_tokens: int) -> dict[str, float | None]:
    """Return tokens a second of so many requests at once, and the median time to the first token of one alone."""
    requests = _requests(engine, num_tokens)
    asyncio.run(_all_at_once(engine, [next(requests) for _ in range(num_requests)]))  # warms up
    alone = [asyncio.run(_first_token_s(engine, next(requests))) for _ in range(_ALONE)]
    began = time.perf_counter()
    counted = asyncio.run(_all_at_once(engine, [next(requests) for _ in range(num_requests)]))
    took_s = time.perf_counter() - began
    return {"tokens/s": counted / took_s, "first token alone, s": median(alone), "requests at once": num_requests}


def _requests(engine: Engine, num_tokens: int) -> Iterator[GenerationRequest]:
    """Yield questions, each about an image that no cache has."""
    size, drawn = engine.inputs.image.size_px, np.random.default_rng(1)
    turns = (Turn("user", f"{IMAGE_MARK}\nWhat is in the image?"),)
    ids = engine.inputs.encode_prompt(turns, engine.tokenizer, num_images=1)
    while True:
        pixels = drawn.integers(0, 256, (1, 3, size, size), np.uint8)
        yield GenerationRequest(ids, pixels, SamplingParams(num_tokens, ignore_eos=True))


async def _all_at_once(engine: Engine, requests: list[GenerationRequest]) -> int:
    async def count(request: GenerationRequest) -> int:
        return sum([len(delta.token_ids) async for delta in engine.submit(request)])

    return sum(await asyncio.gather(*(count(request) for request in requests)))


async def _first_token_s(engine: Engine, request: GenerationRequest) -> float:
    began, first_s = time.perf_counter(), 0.0
    async for _ in engine.submit(request):
        first_s = first_s or time.perf_counter() - began
    return first_s
