"""One request after another, with the endpoint around the engine and without: what of a request's time is the way."""

import asyncio
import random
import time
from pathlib import Path

import numpy as np

from benchmarks.serve.load import Load, make_image, send_all
from warren.data.sample import Turn
from warren.inference import EngineOptions, Prompt, SamplingParams, TransformersEngine, encode_request

_NUM_REQUESTS = 12


def latencies_s(
    url: str, model: str, folder: Path, image_px: int, num_new_tokens: int, seed: int
) -> tuple[float, float]:
    """Return the median times from a request to the last text of its answer: through the endpoint, and of an engine.

    They take turns, for the machine's speed changes. The engine's time has decoding and tokenising in it.
    """
    engine = TransformersEngine(folder, EngineOptions(num_slots=32, max_context_tokens=320))
    rng = random.Random(seed)
    load = Load(1, 100.0, 1, image_px, (num_new_tokens, num_new_tokens))
    through_s, alone_s = [], []
    try:
        for number in range(_NUM_REQUESTS + 1):
            [timeline] = asyncio.run(send_all(url, model, load, seed + number))
            through_s.append(timeline.chunks_s[-1] - timeline.sent_s)
            alone_s.append(asyncio.run(_ask(engine, make_image(image_px, rng), num_new_tokens)))
    finally:
        engine.close()
    return float(np.median(through_s[1:])), float(np.median(alone_s[1:]))


async def _ask(engine: TransformersEngine, image: bytes, num_new_tokens: int) -> float:
    start = time.perf_counter()
    prompt = Prompt((Turn("user", "<image>\n" + "what colour is there " * 3),), (image,))
    sampling = SamplingParams(max_new_tokens=num_new_tokens)
    async for _ in engine.submit(encode_request(prompt, engine.inputs, engine.tokenizer, sampling)):
        pass
    return time.perf_counter() - start
