"""One release, loaded and warm: what the endpoint's routes work with."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from warren.data.sample import IMAGE_MARK, Turn
from warren.errors import ReleaseError
from warren.inference import (
    Engine,
    EngineError,
    GenerationRequest,
    SamplingParams,
    TransformersEngine,
)
from warren.release import Release, fetch_release
from warren_serve.admission import Visit
from warren_serve.auth import KeyRing
from warren_serve.conversation import PromptBuilder
from warren_serve.fetching import ImageFetcher
from warren_serve.settings import ServeSettings
from warren_serve.wire import ChatRequest

_PREPARING_THREADS = 2
_WARM_UP_TOKENS = 4

Fetch = Callable[[str, Path], Release]
"""Downloads a release into a folder, as `warren.release.fetch_release` does."""


class ChatService:
    """A running engine with its release, limits and keys.

    Args:
        engine: Running.
        prompts: Builds requests for it.
        release: What it serves.
        settings: The endpoint's.
    """

    def __init__(self, engine: Engine, prompts: PromptBuilder, release: Release, settings: ServeSettings) -> None:
        self.engine = engine
        self.release = release
        self.settings = settings
        self.model_name = settings.model_name or release.name
        self.keys = KeyRing(settings)
        self._fetcher = ImageFetcher(settings)
        self._prompts = prompts
        # Few threads: a picture is large while it is decoded, and decoding competes with the model for cores.
        self._preparing = ThreadPoolExecutor(_PREPARING_THREADS, thread_name_prefix="warren-prepare")

    async def prepare(self, request: ChatRequest, visit: Visit) -> GenerationRequest:
        """Turn a chat request into the engine's: counted and paid for first, then fetched and decoded.

        Raises:
            ApiError: 400; something in it cannot be used. 429; the key's tokens are used up.
        """
        self._prompts.check_shape(request)
        loop = asyncio.get_running_loop()
        plan = await loop.run_in_executor(self._preparing, self._prompts.plan, request)
        await visit.charge(len(plan.prompt_ids) + request.n * plan.sampling.max_new_tokens)
        images = await self._fetcher.fetch_all(plan.images)
        return await loop.run_in_executor(self._preparing, self._prompts.decode, plan, images)

    def token_text(self, token_id: int) -> str:
        """Return the text of one token, special ones included."""
        return self._prompts.token_text(token_id)

    def close(self) -> None:
        """Stop the engine; unfinished answers fail."""
        self.engine.close()
        self._preparing.shutdown(wait=False, cancel_futures=True)


def load_service(settings: ServeSettings, num_threads: int, fetch: Fetch = fetch_release) -> ChatService:
    """Fetch a release, load it and generate once. The local copy is deleted after that.

    Raises:
        ReleaseError: It does not exist, does not load, or does not generate.
        ConfigError: Settings and model do not fit.
    """
    with TemporaryDirectory(prefix="warren-serve-") as folder:
        release = fetch(settings.release, Path(folder))
        engine = TransformersEngine.load(Path(folder), settings.engine_options, num_threads)
        try:
            _warm_up(engine)
            prompts = PromptBuilder(engine.inputs, engine.tokenizer, engine.max_context_tokens, settings)
            return ChatService(engine, prompts, release, settings)
        except BaseException:
            engine.close()
            raise


def _warm_up(engine: TransformersEngine) -> None:
    """Generate a few tokens about a grey picture, so that the first client waits for nothing that is lazy.

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
