"""The engine for GPU clusters: vLLM over the same release, behind the same protocol.

vLLM is an extra with an environment of its own (`pip install warren-vlm[vllm]`); imported when an engine is made.
Warren's detokenizer writes the text and finds stop strings, so that equal tokens give equal text from both engines.
"""

import asyncio
import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from warren.compat.vllm import start_engine
from warren.data.model_inputs import TOKENIZER_FILE, Inputs, tokenizer_from_json
from warren.errors import ConfigError, ReleaseError
from warren.inference.detokenize import detokenizer_of
from warren.inference.engine import (
    EngineBusyError,
    EngineClosedError,
    EngineError,
    EngineStats,
    GenerationFailedError,
    GenerationRequest,
    TokenDelta,
)
from warren.inference.engine_options import EngineOptions, check_request, context_limit
from warren.inference.streams import QueueStream
from warren.inference.vllm_engine.sampling import DeltaBuilder, vllm_sampling
from warren.models import read_model_config
from warren.models.head import unsampled_ids

logger = logging.getLogger(__name__)

_START_TIMEOUT_S = 600.0
_CLOSE_TIMEOUT_S = 60.0


class VllmEngine:
    """An `Engine` over vLLM's own, which lives on an event loop in a thread.

    Args:
        folder: A model folder that Warren wrote, in plain LLaVA layout.
        options: How much to hold; vLLM sizes its key/value memory itself.

    Raises:
        ConfigError: vLLM is not installed, or the options do not fit the model.
        ReleaseError: vLLM does not load the folder.
    """

    def __init__(self, folder: Path, options: EngineOptions) -> None:
        self.inputs = Inputs.load(folder)
        self.tokenizer = tokenizer_from_json((folder / TOKENIZER_FILE).read_text())
        config = read_model_config(folder)
        self.max_context_tokens = context_limit(config, options.max_context_tokens)
        image_token_id = self.inputs.tokens.image_token_id
        self._unsampled_ids = unsampled_ids(self.tokenizer, config.text_config.vocab_size, image_token_id)
        self._eos_id = self.tokenizer.token_to_id(self.inputs.tokens.eos_token)
        self._options = options
        self._streams: dict[int, QueueStream] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._counts = dict.fromkeys(("prompt", "generated", "finished", "cancelled", "failed"), 0)
        self._last_key = 0
        self._lock = threading.Lock()
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="warren-vllm", daemon=True)
        self._thread.start()
        try:
            self._llm: Any = asyncio.run_coroutine_threadsafe(self._start(folder), self._loop).result(_START_TIMEOUT_S)
        except BaseException:
            self._stop_loop()
            raise

    @property
    def is_alive(self) -> bool:
        """Whether vLLM runs and requests are taken."""
        return not self._closed and not self._llm.errored

    def submit(self, request: GenerationRequest) -> QueueStream:
        """Queue a request; see `Engine.submit`."""
        check_request(request, self.inputs.tokens, self.max_context_tokens)
        with self._lock:
            if not self.is_alive:
                raise EngineClosedError("the engine no longer runs")
            if len(self._streams) >= self._options.num_slots + self._options.max_waiting:
                raise EngineBusyError(f"{len(self._streams)} requests are running or waiting already")
            self._last_key += 1
            stream = self._streams[self._last_key] = QueueStream(self._last_key, self.cancel)
        self._loop.call_soon_threadsafe(self._begin, stream, request)
        return stream

    def cancel(self, key: int) -> None:
        """Free a request's slot; harmless after its end."""
        with self._lock:
            if self._streams.pop(key, None) is None:
                return
            self._counts["cancelled"] += 1
        self._loop.call_soon_threadsafe(self._end, key)

    def stats(self) -> EngineStats:
        """Return counts; those that only vLLM knows are 0."""
        with self._lock:
            num_open, counts = len(self._streams), dict(self._counts)
        values = dict.fromkeys(EngineStats.__dataclass_fields__, 0)
        values |= {f"num_{name}{'_tokens' * (name in ('prompt', 'generated'))}": n for name, n in counts.items()}
        values["num_running"] = min(num_open, self._options.num_slots)
        values["num_waiting"] = num_open - values["num_running"]
        return EngineStats(
            **values | {"num_slots": self._options.num_slots, "max_context_tokens": self.max_context_tokens}
        )

    def close(self) -> None:
        """Stop vLLM and fail what is unfinished."""
        if self._closed:
            return
        self._closed = True
        asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop).result(_CLOSE_TIMEOUT_S)
        self._stop_loop()

    async def _start(self, folder: Path) -> Any:
        on_gpu = torch.cuda.is_available()
        try:
            return start_engine(
                model=str(folder),
                max_model_len=self.max_context_tokens,
                max_num_seqs=self._options.num_slots,
                dtype="auto" if on_gpu else "float32",
                enforce_eager=not on_gpu,  # compiling takes minutes and gains little without a GPU
                disable_log_stats=True,
            )
        except ImportError as error:
            raise ConfigError(
                f"engine is 'vllm', which does not import here ({error}): pip install warren-vlm[vllm] into an "
                "environment of its own, or set engine to 'transformers'"
            ) from None
        except Exception as error:
            raise ReleaseError(f"{folder} does not load in vLLM: {error}") from error

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=_CLOSE_TIMEOUT_S)

    async def _shut_down(self) -> None:
        with self._lock:
            streams = list(self._streams.values())
            self._streams.clear()
        for stream in streams:
            _deliver(stream, EngineClosedError("the engine was closed"))
        for task in list(self._tasks.values()):
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._llm.shutdown()

    def _begin(self, stream: QueueStream, request: GenerationRequest) -> None:
        if stream.key in self._streams:  # not cancelled meanwhile
            self._tasks[stream.key] = asyncio.create_task(self._run(stream, request))

    def _end(self, key: int) -> None:
        if task := self._tasks.get(key):
            task.cancel()  # vLLM frees the request when its generator is left

    async def _run(self, stream: QueueStream, request: GenerationRequest) -> None:
        detokenizer = detokenizer_of(request, self.tokenizer)
        deltas = DeltaBuilder(request.sampling, detokenizer, self._eos_id, self._unsampled_ids)
        self._counts["prompt"] += len(request.prompt_ids)
        try:
            sampling = vllm_sampling(request.sampling, self._unsampled_ids)
            outputs = self._llm.generate(self._vllm_prompt(request), sampling, str(stream.key))
            async for output in outputs:
                delta = deltas.build(output.outputs[0])
                self._counts["generated"] += len(delta.token_ids)
                if delta.finish_reason:
                    self._finish(stream, delta, "finished")
                    await outputs.aclose()
                    return
                _deliver(stream, delta)
            self._finish(stream, GenerationFailedError("the answer has no end"), "failed")
        except Exception as error:
            logger.exception("a request failed in vLLM")
            dead = EngineClosedError("the engine died") if self._llm.errored else None
            self._finish(stream, dead or GenerationFailedError(f"the request failed: {type(error).__name__}"), "failed")
        finally:
            self._tasks.pop(stream.key, None)

    def _finish(self, stream: QueueStream, result: TokenDelta | EngineError, count: str) -> None:
        with self._lock:
            if self._streams.pop(stream.key, None) is None:
                return
            self._counts[count] += 1
        _deliver(stream, result)

    def _vllm_prompt(self, request: GenerationRequest) -> dict[str, Any]:
        """Return vLLM's form: one image token per image, which it expands itself, and the images at model size."""
        ids = request.prompt_ids
        is_image = ids == self.inputs.tokens.image_token_id
        kept = ~is_image | (np.cumsum(is_image) % self.inputs.tokens.tokens_per_image == 1)
        if self.inputs.tokens.tokens_per_image == 1:
            kept = np.ones_like(is_image)
        prompt: dict[str, Any] = {"prompt_token_ids": ids[kept].tolist()}
        if len(request.pixels):
            images = [Image.fromarray(np.ascontiguousarray(each.transpose(1, 2, 0))) for each in request.pixels]
            prompt |= {"multi_modal_data": {"image": images}, "multi_modal_uuids": {"image": list(request.digests)}}
        return prompt


def _deliver(stream: QueueStream, result: TokenDelta | EngineError) -> None:
    try:
        stream.loop.call_soon_threadsafe(stream.deliver, result)
    except RuntimeError:  # the reader's loop is closed: nobody reads any more
        logger.info("nobody reads request %d", stream.key)
