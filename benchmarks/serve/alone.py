"""The engine without an endpoint: what of a request's time is not the ingress's."""

import asyncio
import random
import time
from pathlib import Path

import numpy as np

from benchmarks.serve.load import Load, picture
from warren.data.sample import Turn
from warren.inference import EngineOptions, Prompt, SamplingParams, TransformersEngine, encode_request


def median_latency_s(folder: Path, load: Load, seed: int) -> float:
    """Return the median time of single requests, decoding and tokenising included, one after another."""
    engine = TransformersEngine.load(folder, EngineOptions(num_slots=1, max_context_tokens=320))
    rng = random.Random(seed)
    sampling = SamplingParams(max_new_tokens=sum(load.num_new_tokens) // 2)

    async def ask(image: bytes) -> float:
        start = time.perf_counter()
        prompt = Prompt((Turn("user", "<image>\n" + "what colour is there " * 3),), (image,))
        async for _ in engine.submit(encode_request(prompt, engine.inputs, engine.tokenizer, sampling)):
            pass
        return time.perf_counter() - start

    try:
        taken = [asyncio.run(ask(picture(load.image_px, rng))) for _ in range(load.num_requests + 1)]
    finally:
        engine.close()
    return float(np.median(taken[1:]))
