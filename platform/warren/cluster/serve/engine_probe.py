"""What the gate measures with an engine of the candidate: times, memory, and answers to sanity prompts.

One Ray task does it, with the resources of a replica, so it runs on the hardware that will serve the release.
"""

import asyncio
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import ray

from warren.cluster.capacity import lacks, size_of, waiting
from warren.config import GateConfig, Resources
from warren.data.sample import IMAGE_MARK, Turn
from warren.errors import ReleaseError, root_cause
from warren.inference import (
    EngineError,
    EngineOptions,
    GenerationRequest,
    Prompt,
    SamplingParams,
    TransformersEngine,
    encode_request,
)
from warren.release import EngineProbe, ProbedAnswer
from warren.rollout.answer_checks import is_repetitive
from warren.storage import StoredFiles
from warren.storage.file_cache import local_copy

_ROUNDS = 5
_NUM_TOKENS = 16
_SANITY_TOKENS = 64


def probe_engine(resources: Resources, gate: GateConfig, model: StoredFiles) -> EngineProbe:
    """Start an engine of a model as a replica would, and return what the gate measures.

    Args:
        resources: Of a replica; the task takes as much.
        gate: Its sanity prompts are asked.
        model: The model files of a checkpoint.
    """
    cpus, gpus = resources.cpus_per_replica, resources.gpus_per_replica
    if lacks(cpus, gpus):
        print(f"release: {waiting(size_of(1, 'tasks for the gate', cpus, gpus))}", file=sys.stderr)
    task = ray.remote(_probe).options(num_cpus=cpus, num_gpus=gpus)
    prompts = tuple(prompt.text for prompt in gate.sanity_prompts)
    try:
        probe: EngineProbe = ray.get(task.remote(model, prompts, cpus, gpus))
    except ray.exceptions.RayTaskError as error:
        known = root_cause(error)
        # The model is at fault, which is the gate's to judge; any other error ends the job.
        if isinstance(known, ReleaseError | EngineError):
            return EngineProbe(problem=f"its engine cannot be started or does not answer: {known}")
        raise known from None
    return probe


def _probe(model: StoredFiles, prompts: Sequence[str], num_cpus: float, num_gpus: float) -> EngineProbe:
    with local_copy(model) as local:
        return measure(local, prompts, num_cpus, num_gpus)


def measure(folder: Path, prompts: Sequence[str], num_cpus: float = 1.0, num_gpus: float = 0.0) -> EngineProbe:
    """Measure the engine of a model folder, in a process of its own.

    Args:
        prompts: Sanity prompts, asked without an image.
        num_cpus: Its whole part is the number of compute threads.
        num_gpus: Whether it computes on a GPU.

    Raises:
        ReleaseError: The model does not load.
        EngineError: It does not answer.
    """
    before_bytes = _used_gpu_bytes() if num_gpus else 0
    engine = TransformersEngine(folder, EngineOptions(), num_threads=max(1, int(num_cpus)))
    try:
        timed = [asyncio.run(_timed(engine)) for _ in range(_ROUNDS + 1)][1:]  # the first one warms up
        answers = [asyncio.run(_answer(engine, prompt)) for prompt in prompts]
        # Measured before the engine closes, so with its largest caches.
        memory_bytes = _used_gpu_bytes() - before_bytes if num_gpus else _peak_bytes(engine.pid)
    finally:
        engine.close()
    return EngineProbe(
        first_token_s=median(first_s for first_s, _ in timed),
        token_s=median(token_s for _, token_s in timed),
        memory_bytes=memory_bytes,
        hardware=_hardware(num_cpus, num_gpus),
        answers=tuple(
            ProbedAnswer(prompt, text, is_repetitive(text)) for prompt, text in zip(prompts, answers, strict=True)
        ),
    )


async def _timed(engine: TransformersEngine) -> tuple[float, float]:
    """Return the time to the first token of a question about an image, and the time of one further token."""
    size = engine.inputs.image.size_px
    turns = (Turn("user", f"{IMAGE_MARK}\nWhat is in the image?"),)
    ids = engine.inputs.encode_prompt(turns, engine.tokenizer, num_images=1)
    pixels = np.random.default_rng(time.perf_counter_ns()).integers(0, 256, (1, 3, size, size), np.uint8)  # not cached
    request = GenerationRequest(ids, pixels, SamplingParams(_NUM_TOKENS, ignore_eos=True))
    begin_s = time.perf_counter()
    seen_s = []
    async for delta in engine.submit(request):
        # One delta may hold several tokens; each counts as seen when the delta came.
        seen_s += [time.perf_counter()] * len(delta.token_ids)
    return seen_s[0] - begin_s, (seen_s[-1] - seen_s[0]) / max(1, len(seen_s) - 1)


async def _answer(engine: TransformersEngine, prompt: str) -> str:
    sampling = SamplingParams(_SANITY_TOKENS)
    request = encode_request(Prompt((Turn("user", prompt),)), engine.inputs, engine.tokenizer, sampling)
    return "".join([delta.text async for delta in engine.submit(request)])


def _peak_bytes(pid: int) -> int:
    """Return the most memory that a process has had; where the system does not say, what it has now."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return int(psutil.Process(pid).memory_info().rss)


def _used_gpu_bytes() -> int:
    import torch  # in the task alone, and only where there is a GPU

    free, total = torch.cuda.mem_get_info()
    return int(total - free)


def _hardware(num_cpus: float, num_gpus: float) -> str:
    if not num_gpus:
        return f"{num_cpus:g} CPU of {platform.machine()}"
    import torch

    return str(torch.cuda.get_device_name())
