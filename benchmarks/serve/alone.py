"""One request after another, with the endpoint around the engine and without: what of a request's time is the way."""

import asyncio
import random
import time
from pathlib import Path

import numpy as np

from benchmarks.serve.load import Load, picture, send_all
from warren.data.sample import Turn
from warren.inference import EngineOptions, Prompt, SamplingParams, TransformersEngine, encode_request

_NUM_REQUESTS = 8


def endpoint_latency_s(url: str, model: str, image_px: int, num_new_tokens: int, seed: int) -> float:
    """Return the median time from sending a request to the last text of its answer."""
    load = Load(1, 100.0, 1, image_px, (num_new_tokens, num_new_tokens))
    timelines = [asyncio.run(send_all(url, model, load, seed + number))[0] for number in range(_NUM_REQUESTS + 1)]
    return float(np.median([one.chunks_s[-1] - one.sent_s for one in timelines[1:]]))


def engine_latency_s(folder: Path, image_px: int, num_new_tokens: int, seed: int) -> float:
    """Return the median time of the same in this process, decoding and tokenising included."""
    engine = TransformersEngine.load(folder, EngineOptions(num_slots=1, max_context_tokens=320))
    rng = random.Random(seed)
    sampling = SamplingParams(max_new_tokens=num_new_tokens)

    async def ask(image: bytes) -> float:
        start = time.perf_counter()
        prompt = Prompt((Turn("user", "<image>\n" + "what colour is there " * 3),), (image,))
        async for _ in engine.submit(encode_request(prompt, engine.inputs, engine.tokenizer, sampling)):
            pass
        return time.perf_counter() - start

    try:
        taken = [asyncio.run(ask(picture(image_px, rng))) for _ in range(_NUM_REQUESTS + 1)]
    finally:
        engine.close()
    return float(np.median(taken[1:]))
