"""The service behind the routes, and the start of the ingress' and the engine's side."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

from warren.data.model_inputs import TOKENIZER_FILE, Inputs, tokenizer_from_json
from warren.data.sample import IMAGE_MARK, Turn
from warren.errors import ReleaseError
from warren.inference import (
    Engine,
    EngineError,
    GenerationRequest,
    SamplingParams,
    TransformersEngine,
    WorkerProcess,
    context_limit,
)
from warren.release import Release, fetch_release
from warren.storage.scratch import scratch_folder
from warren_serve.admission import RateLimitLease
from warren_serve.auth import KeyRing
from warren_serve.backend import Backend, EngineRequest, LocalBackend, UsageReporter
from warren_serve.errors import deadline_exceeded
from warren_serve.image_fetcher import ImageFetcher
from warren_serve.metrics import RequestMetrics, render
from warren_serve.parity import check_engine, check_ingress, read_cases
from warren_serve.prompt import PromptBuilder, detach_images
from warren_serve.protocol import GenerationFields
from warren_serve.settings import ServeSettings
from warren_serve.tracing import current_traceparent

_PREPARING_THREADS = 2
_WARM_UP_TOKENS = 4

Fetch = Callable[[str, Path], Release]
"""Downloads a release into a folder, as `warren.release.fetch_release` does."""

EngineLoader = Callable[[Path], Engine]
"""Loads an engine from a model folder."""


@dataclass(frozen=True, eq=False)
class ServedRelease:
    """What the ingress has of a release.

    Attributes:
        prompts: Checks requests before they are passed on.
    """

    release: Release
    prompts: PromptBuilder


class ReleaseChooser(Protocol):
    """Chooses which release answers a request; there are several while one rolls in."""

    @property
    def main(self) -> ServedRelease:
        """The release that serves, or most of the traffic."""
        ...

    def choose(self, session: str | None, key: str) -> ServedRelease:
        """Return the release for a request.

        Args:
            session: The client's `x-session-id`.
            key: Digest of the API key, or `anonymous`.

        Raises:
            ApiError: 503; there is none.
        """
        ...


class OneRelease:
    """A chooser with nothing to choose."""

    def __init__(self, served: ServedRelease) -> None:
        self.main = served

    def choose(self, session: str | None, key: str) -> ServedRelease:
        """See `ReleaseChooser.choose`."""
        return self.main


class ChatService:
    """A backend with its releases, limits, keys and metrics.

    Args:
        backend: Answers requests; closed with the service.
        releases: The releases that answer. Responses name the version they come from.
        settings: The endpoint's settings.
    """

    def __init__(self, backend: Backend, releases: ReleaseChooser, settings: ServeSettings) -> None:
        self.backend = backend
        self.settings = settings
        self.model_name = settings.model_name or releases.main.release.name
        self.keys = KeyRing(settings)
        self.metrics = RequestMetrics()
        self._fetcher = ImageFetcher(settings)
        self._releases = releases
        # Few threads, because only tokenising, base64 and image headers are slow here.
        self._preparing = ThreadPoolExecutor(_PREPARING_THREADS, thread_name_prefix="warren-prepare")

    def deadline(self) -> float:
        """Return when a request that has arrived now must be answered, on the event loop's clock."""
        return asyncio.get_running_loop().time() + self.settings.request_timeout_s

    @property
    def release(self) -> Release:
        """The release that serves, or most of the traffic."""
        return self._releases.main.release

    async def prepare(
        self, request: GenerationFields, lease: RateLimitLease, deadline: float, session: str | None = None
    ) -> EngineRequest:
        """Check all that needs no engine: tokens are counted and charged, then images are fetched.

        Args:
            session: The client's `x-session-id`; a session stays with one release while weights stand still.

        Raises:
            ApiError: 400; the request cannot be answered. 429; the key's tokens are used up. 504; the deadline passed.
        """
        served = self._releases.choose(session, lease.key)
        served.prompts.check_shape(request)
        try:
            async with asyncio.timeout_at(deadline):
                return await self._prepare(served, request, lease)
        except TimeoutError:
            raise deadline_exceeded(self.settings.request_timeout_s) from None

    async def _prepare(self, served: ServedRelease, request: GenerationFields, lease: RateLimitLease) -> EngineRequest:
        loop = asyncio.get_running_loop()
        prompt = await loop.run_in_executor(self._preparing, served.prompts.prepare, request)
        # Charged before images are fetched, and for the longest answer; the lease gives back what was not used.
        await lease.charge(len(prompt.prompt_ids) + request.n * prompt.sampling.max_new_tokens)
        sources = await self._fetcher.fetch_all(prompt.images)
        images = await loop.run_in_executor(self._preparing, served.prompts.read_images, sources)
        key = lease.key if self.settings.tokens_per_minute else None
        return EngineRequest(detach_images(request), images, key, served.release.version, current_traceparent())

    @property
    def max_context_tokens(self) -> int:
        """Most tokens of prompt and answer together."""
        return self._releases.main.prompts.max_context_tokens

    async def metrics_text(self) -> bytes:
        """Return the metrics of this process in Prometheus' text format."""
        return render([*self.metrics.registry.collect(), *self.backend.metrics()])

    def close(self) -> None:
        """Stop the backend; unfinished answers fail."""
        self.backend.close()
        self._preparing.shutdown(wait=False, cancel_futures=True)


def load_backend(
    settings: ServeSettings,
    num_threads: int,
    fetch: Fetch = fetch_release,
    report_usage: UsageReporter | None = None,
) -> LocalBackend:
    """Fetch a release, load it, and check its golden cases. The local copy is deleted after that.

    A release without golden cases generates once instead.

    Args:
        settings: The endpoint's settings.
        num_threads: Compute threads of the engine.
        fetch: Downloads the release.
        report_usage: See `LocalBackend`.

    Raises:
        ReleaseError: It does not exist, does not load, does not generate, or does not do what it did in training.
        ConfigError: Settings and model do not fit.
    """
    with scratch_folder("serve") as folder, ExitStack() as on_failure:
        load_engine = _engine_loader(settings, num_threads, on_failure)
        release = fetch(settings.release, folder)
        golden = read_cases(folder, settings)
        engine = load_engine(folder)
        on_failure.callback(engine.close)
        backend = LocalBackend(engine, release.version, settings, report_usage=report_usage)
        on_failure.callback(backend.close)
        backend.decoder.start()
        # Golden cases warm the engine up as well as the question about a grey image does.
        if golden is None or not check_engine(golden, backend, settings).num_cases:
            _warm_up(engine)
        on_failure.pop_all()
        return backend


def open_service(settings: ServeSettings, backend: Backend) -> ChatService:
    """Open the service in front of a backend, for one release.

    Raises:
        ReleaseError: There is no such release.
    """
    return ChatService(backend, OneRelease(load_served(settings.release, settings)), settings)


def load_served(uri: str, settings: ServeSettings) -> ServedRelease:
    """Load what the ingress needs of a release; everything but its weights is fetched.

    Args:
        uri: An immutable version.
        settings: The endpoint's settings; their `release` is not read.

    Raises:
        ReleaseError: There is no such release, or its golden cases become other prompts here than in training.
    """
    from warren.models import read_model_config  # here, because an engine's replica must not import torch

    with scratch_folder("ingress") as folder:
        release = fetch_release(uri, folder, weights=False)
        context = context_limit(read_model_config(folder), settings.max_context_tokens)
        inputs = Inputs.load(folder)
        tokenizer = tokenizer_from_json((folder / TOKENIZER_FILE).read_text())
        golden = read_cases(folder, settings)
    prompts = PromptBuilder(inputs, tokenizer, context, settings)
    if golden is not None:
        check_ingress(golden, prompts, inputs, tokenizer)
    return ServedRelease(release, prompts)


def _engine_loader(settings: ServeSettings, num_threads: int, on_failure: ExitStack) -> EngineLoader:
    """Start what an engine can start without its model, and return what loads the model."""
    options = settings.engine_options
    if settings.engine == "vllm":
        from warren.inference.vllm_engine.engine import VllmEngine  # here, because it imports torch

        return partial(VllmEngine, options=options)
    process = WorkerProcess()  # it imports torch while the release is fetched
    on_failure.callback(process.end)
    return partial(TransformersEngine, options=options, num_threads=num_threads, process=process)


def _warm_up(engine: Engine) -> None:
    """Generate a few tokens about a grey image, so that the first client does not wait for lazy initialisation.

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
        # In a thread, because the caller may be on an event loop.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, generate()).result()
    except EngineError as error:
        raise ReleaseError(f"the release does not generate: {error}") from None
