"""What the endpoint's routes work with, and how each side of the seam comes up."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from warren.data.model_inputs import TOKENIZER_FILE, Inputs, tokenizer_from_json
from warren.data.sample import IMAGE_MARK, Turn
from warren.errors import ReleaseError
from warren.inference import (
    EngineError,
    GenerationRequest,
    SamplingParams,
    TransformersEngine,
    WorkerProcess,
    context_limit,
)
from warren.release import Release, fetch_release
from warren.storage.scratch import scratch_folder
from warren_serve.admission import Visit
from warren_serve.auth import KeyRing
from warren_serve.backend import Backend, Debit, EngineRequest, LocalBackend
from warren_serve.errors import deadline_exceeded
from warren_serve.image_fetcher import ImageFetcher
from warren_serve.metrics import RequestMetrics, engine_registry, render
from warren_serve.prompt import PromptBuilder, without_images
from warren_serve.protocol import GenerationFields
from warren_serve.settings import ServeSettings

if TYPE_CHECKING:
    from warren.inference.vllm_engine.engine import VllmEngine

_PREPARING_THREADS = 2
_WARM_UP_TOKENS = 4

Fetch = Callable[[str, Path], Release]
"""Downloads a release into a folder, as `warren.release.fetch_release` does."""


class ChatService:
    """A backend with what is known about it, limits and keys.

    Args:
        backend: What answers; closed with the service.
        prompts: Checks requests before they are passed on.
        release: What it is to serve. While another rolls in, answers name the version they are from.
        settings: The endpoint's.
    """

    def __init__(self, backend: Backend, prompts: PromptBuilder, release: Release, settings: ServeSettings) -> None:
        self.backend = backend
        self.release = release
        self.settings = settings
        self.model_name = settings.model_name or release.name
        self.keys = KeyRing(settings)
        self.metrics = RequestMetrics()
        self._fetcher = ImageFetcher(settings)
        self._prompts = prompts
        # Few threads: tokenising, base64 and image headers are all that is slow here.
        self._preparing = ThreadPoolExecutor(_PREPARING_THREADS, thread_name_prefix="warren-prepare")

    def deadline(self) -> float:
        """Return when a request that has arrived by now must be answered, on the event loop's clock."""
        return asyncio.get_running_loop().time() + self.settings.request_timeout_s

    async def prepare(self, request: GenerationFields, visit: Visit, deadline: float) -> EngineRequest:
        """Check what needs no engine: counted and paid for first, then images are fetched and their headers read.

        Raises:
            ApiError: 400; something in it cannot be used. 429; the key's tokens are used up. 504; the deadline came.
        """
        self._prompts.check_shape(request)
        try:
            async with asyncio.timeout_at(deadline):
                return await self._prepare(request, visit)
        except TimeoutError:
            raise deadline_exceeded(self.settings.request_timeout_s) from None

    async def _prepare(self, request: GenerationFields, visit: Visit) -> EngineRequest:
        loop = asyncio.get_running_loop()
        prompt = await loop.run_in_executor(self._preparing, self._prompts.prepare, request)
        await visit.charge(len(prompt.prompt_ids) + request.n * prompt.sampling.max_new_tokens)
        sources = await self._fetcher.fetch_all(prompt.images)
        images = await loop.run_in_executor(self._preparing, self._prompts.read_images, sources)
        key = visit.key if self.settings.tokens_per_minute else None
        return EngineRequest(without_images(request), images, key)

    @property
    def max_context_tokens(self) -> int:
        """Prompt and answer together."""
        return self._prompts.max_context_tokens

    async def figures(self) -> bytes:
        """Return what this process counted, in Prometheus' text format."""
        families = [*self.metrics.registry.collect()]
        if isinstance(self.backend, LocalBackend):
            families += engine_registry(self.backend.engine.stats).collect()
        return render(families)

    def close(self) -> None:
        """Stop the backend; unfinished answers fail."""
        self.backend.close()
        self._preparing.shutdown(wait=False, cancel_futures=True)


def load_backend(
    settings: ServeSettings, num_threads: int, fetch: Fetch = fetch_release, debit: Debit | None = None
) -> LocalBackend:
    """Fetch a release, load it and generate once. The local copy is deleted after that.

    Raises:
        ReleaseError: It does not exist, does not load, or does not generate.
        ConfigError: Settings and model do not fit.
    """
    with scratch_folder("serve") as folder, ExitStack() as on_failure:
        process = None
        if settings.engine == "transformers":
            process = WorkerProcess()  # it imports torch while the release is fetched
            on_failure.callback(process.end)
        release = fetch(settings.release, folder)
        engine = _engine_of(settings, folder, num_threads, process)
        on_failure.callback(engine.close)
        _warm_up(engine)
        prompts = PromptBuilder(engine.inputs, engine.tokenizer, engine.max_context_tokens, settings)
        backend = LocalBackend(engine, prompts, release.version, settings, debit=debit)
        backend.decoder.start()
        on_failure.pop_all()
        return backend


def open_service(settings: ServeSettings, backend: Backend) -> ChatService:
    """Put the routes' service in front of a backend; of the release everything but the weights is fetched.

    Raises:
        ReleaseError: There is no such release.
    """
    from warren.models import read_model_config  # late: a replica of the engine asks its process instead

    with scratch_folder("ingress") as folder:
        release = fetch_release(settings.release, folder, weights=False)
        context = context_limit(read_model_config(folder), settings.max_context_tokens)
        inputs = Inputs.load(folder)
        tokenizer = tokenizer_from_json((folder / TOKENIZER_FILE).read_text())
    prompts = PromptBuilder(inputs, tokenizer, context, settings)
    return ChatService(backend, prompts, release, settings)


def _engine_of(
    settings: ServeSettings, folder: Path, num_threads: int, process: WorkerProcess | None
) -> "TransformersEngine | VllmEngine":
    if process:
        return TransformersEngine(folder, settings.engine_options, num_threads, process)
    from warren.inference.vllm_engine.engine import VllmEngine  # late: it takes torch along

    return VllmEngine(folder, settings.engine_options)


def _warm_up(engine: "TransformersEngine | VllmEngine") -> None:
    """Generate a few tokens about a grey image, so that the first client waits for nothing that is lazy.

    Raises:
        ReleaseError: The model fails on it.
    """
    size = engine.inputs.image.size_px
    turns = (Turn("user", f"{IMAGE_MARK}\nWhat is there?"),)
    ids = engine.inputs.encode_prompt(turns, engine.tokenizer, num_images=1)
    sampling = SamplingParams(max_new_tokens=_WARM_UP_TOKENS, ignore_eos=True)
    request = GenerationRequest(ids, np.full((1, 3, size, size), 127, dtype=np.uint8), sampling)

    async def generate() -> None:
        async for _ in engine.submit(request):
            pass

    try:
        # A thread of its own: the caller may or may not be on an event loop.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, generate()).result()
    except EngineError as error:
        raise ReleaseError(f"the release does not generate: {error}") from None
