"""Where the CPU time of one step of the engine goes: `python -m benchmarks.serve.where_time_goes`.

No Ray, no HTTP, one compute thread; CPU seconds of the thread, so that other work on the machine shows less.
"""

import argparse
import cProfile
import pstats
import random
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch.nn import functional

from benchmarks.serve.load import make_image
from benchmarks.serve.model import IMAGE_PX, publish_model
from warren.data.model_inputs import tokenizer_from_json
from warren.data.sample import Turn
from warren.inference import EngineOptions, GenerationRequest, Prompt, SamplingParams, encode_request
from warren.inference.transformers_engine.decode_kernel import attend_rows
from warren.inference.transformers_engine.packed_linear import PackedLinear
from warren.inference.transformers_engine.scheduler import Scheduler
from warren.models import load_bundle
from warren.storage import Location

_PARTS = {  # what the profiler calls it, and whether what it calls belongs to it
    "products with weights": ("<built-in method torch._ops.mkldnn._linear_pointwise>", False),
    "attention": ("attention.py:attend", True),
    "writing keys and values": ("cache.py:update", True),
    "choosing tokens": ("sampling.py:choose", True),
    "text of the tokens": ("batch.py:_settle", True),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serve.where_time_goes", description=__doc__)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--steps", type=int, default=24)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory(prefix="warren-bench-") as name:
        folder = Path(name)
        publish_model(Location.parse(str(folder / "store")), folder / "model", quick=False)
        model, inputs, tokenizer_json = load_bundle(folder / "model")
    tokenizer = tokenizer_from_json(tokenizer_json)
    rng = random.Random(0)
    sampling = SamplingParams(max_new_tokens=10 * options.steps, ignore_eos=True)

    def request() -> GenerationRequest:
        words = "<image>\n" + " ".join(rng.choices(["what", "colour", "shape", "is", "there"], k=12))
        prompt = Prompt((Turn("user", words),), (make_image(IMAGE_PX, rng),))
        return encode_request(prompt, inputs, tokenizer, sampling)

    batch = Scheduler(model, inputs, tokenizer, EngineOptions(num_slots=options.rows + 1, max_context_tokens=480))
    for key in range(options.rows):
        batch.add(key, request())
    while batch.stats().num_waiting or batch.stats().num_generated_tokens < 2 * options.rows:
        batch.step()
    print(f"{options.rows} answers, a token each: {_median_ms(batch, options.steps):.1f} ms a step (median)")
    profile = cProfile.Profile(time.thread_time)
    profile.enable()
    for _ in range(options.steps):
        batch.step()
    profile.disable()
    _print_parts(pstats.Stats(profile), options.steps)
    batch.add(options.rows, request())
    print(f"the same while a prompt with an image is read: {_median_ms(batch, 4):.1f} ms a step")
    _compare_products()
    _compare_attention(options.rows)


def _compare_products() -> None:
    """Print what share of a plain product's time a packed one takes, weights of many layers after one another."""
    plain = [torch.nn.Linear(512, 1536, bias=False) for _ in range(36)]  # more than caches hold
    packed = [PackedLinear(layer) for layer in plain]
    for num_tokens in (1, 4, 8, 32, 64, 512):
        values = torch.randn(num_tokens, 512)
        taken: dict[bool, list[float]] = {False: [], True: []}
        for is_packed in [False, True] * 15:
            start = time.thread_time()
            with torch.inference_mode():
                for layer in packed if is_packed else plain:
                    layer(values)
            taken[is_packed].append(time.thread_time() - start)
        share = np.median(taken[True]) / np.median(taken[False])
        print(f"products of {num_tokens} tokens with packed weights: {share:.2f} of the time")


def _compare_attention(rows: int) -> None:
    """Print what share of the time of torch's attention the kernel takes, for a token of each row in twelve layers."""
    keys, values = ([torch.randn(rows, 8, 480, 64) for _ in range(12)] for _ in range(2))
    query, lengths = torch.randn(rows, 8, 64), np.random.default_rng(0).integers(95, 200, rows)
    seen = (torch.arange(lengths.max()) < torch.from_numpy(lengths)[:, None])[:, None, None]
    taken: dict[bool, list[float]] = {False: [], True: []}
    for is_own in [False, True] * 8:
        start = time.thread_time()
        for key, value in zip(keys, values, strict=True):
            if is_own:
                attend_rows(query, key, value, lengths)
            else:
                keys_read, values_read = (store[:, :, : lengths.max()] for store in (key, value))
                functional.scaled_dot_product_attention(query[:, :, None], keys_read, values_read, attn_mask=seen)
        taken[is_own].append(time.thread_time() - start)
    share = np.median(taken[True]) / np.median(taken[False])
    print(f"attention of {rows} answers of 95 to 199 tokens by the kernel: {share:.2f} of the time")


def _median_ms(batch: Scheduler, steps: int) -> float:
    taken = []
    for _ in range(steps):
        start = time.thread_time()
        batch.step()
        taken.append(time.thread_time() - start)
    return 1e3 * float(np.median(taken))


def _print_parts(stats: pstats.Stats, steps: int) -> None:
    entries: dict[tuple[str, int, str], tuple[int, int, float, float, object]] = stats.stats  # type: ignore[attr-defined]
    for part, (function, is_whole) in _PARTS.items():
        spent = sum(
            whole if is_whole else own
            for (path, _, name), (_, _, own, whole, _) in entries.items()
            if function in (name, f"{Path(path).name}:{name}")
        )
        print(f"  {part}: {1e3 * spent / steps:.1f} ms")
    everything = sum(own for _, _, own, _, _ in entries.values())
    print(f"  everything, with the profiler: {1e3 * everything / steps:.1f} ms")


if __name__ == "__main__":
    main()
