"""The default engine: continuous batching over a transformers model, in one worker thread."""

import asyncio
import logging
import threading
from pathlib import Path

import torch
from transformers import LlavaForConditionalGeneration

from warren.data.inputs import Inputs, tokenizer_from_json
from warren.inference.batch import Batch, Event
from warren.inference.engine import (
    EngineBusyError,
    EngineClosedError,
    EngineError,
    EngineStats,
    GenerationRequest,
    TokenDelta,
)
from warren.inference.limits import EngineOptions
from warren.inference.streams import QueueStream
from warren.models import load_bundle

logger = logging.getLogger(__name__)


class TransformersEngine:
    """An `Engine` over one loaded model.

    Args:
        model: In evaluation mode, on its device. The engine is its only user.
        inputs: What it was trained on.
        tokenizer_json: The text of its tokenizer.
        options: How much to hold.
        num_threads: Compute threads. More than the cores it owns makes spinning barriers, ten times slower.

    Raises:
        ConfigError: The options do not fit the model.
    """

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        inputs: Inputs,
        tokenizer_json: str,
        options: EngineOptions,
        num_threads: int = 1,
    ) -> None:
        self.inputs = inputs
        self.tokenizer = tokenizer_from_json(tokenizer_json)
        self._batch = Batch(model, inputs, self.tokenizer, options)
        self._max_requests = options.num_slots + options.max_waiting
        self._num_threads = max(1, num_threads)
        self._wake = threading.Condition()
        self._streams: dict[int, QueueStream] = {}
        self._new: list[tuple[int, GenerationRequest]] = []
        self._cancelled: list[int] = []
        self._last_key = 0
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="warren-engine", daemon=True)
        self._thread.start()

    @classmethod
    def load(cls, folder: Path, options: EngineOptions, num_threads: int = 1) -> "TransformersEngine":
        """Load a model folder that Warren wrote, onto the GPU where there is one.

        Raises:
            ReleaseError: The folder does not load.
            ConfigError: The options do not fit the model.
        """
        model, inputs, tokenizer_json = load_bundle(folder)
        if torch.cuda.is_available():
            model = model.to("cuda")
        return cls(model, inputs, tokenizer_json, options, num_threads)

    @property
    def is_alive(self) -> bool:
        """Whether the worker thread runs and takes requests."""
        return not self._closed and self._thread.is_alive()

    @property
    def max_context_tokens(self) -> int:
        """Most tokens of prompt and answer together."""
        return self._batch.max_context_tokens

    def submit(self, request: GenerationRequest) -> QueueStream:
        """Queue a request; see `Engine.submit`."""
        self._batch.check(request)
        with self._wake:
            if not self.is_alive:
                raise EngineClosedError("the engine no longer runs")
            if len(self._streams) >= self._max_requests:
                raise EngineBusyError(f"{len(self._streams)} requests are running or waiting already")
            self._last_key += 1
            stream = self._streams[self._last_key] = QueueStream(self._last_key, self.cancel)
            self._new.append((self._last_key, request))
            self._wake.notify()
        return stream

    def cancel(self, key: int) -> None:
        """Free a request's slot before the next step; harmless after its end."""
        with self._wake:
            if self._streams.pop(key, None):
                self._cancelled.append(key)
                self._wake.notify()

    def stats(self) -> EngineStats:
        """Return counts; callable from any thread."""
        return self._batch.stats()

    def close(self) -> None:
        """Stop the thread and fail what is unfinished."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=60.0)

    def _run(self) -> None:
        torch.set_num_threads(self._num_threads)  # counts for this thread
        error: EngineError = EngineClosedError("the engine was closed")
        try:
            while self._take_commands():
                self._publish(self._batch.step())
        except Exception as failure:
            logger.exception("the engine died")
            error = EngineClosedError(f"the engine died: {failure}")
        with self._wake:
            self._closed = True
            keys = list(self._streams)
        self._publish([(key, error) for key in keys])

    def _take_commands(self) -> bool:
        """Wait for work and hand it to the batch; returns False once the engine is closed."""
        with self._wake:
            while not (self._closed or self._new or self._cancelled or self._batch.has_work):
                self._wake.wait()
            new, self._new = self._new, []
            cancelled, self._cancelled = self._cancelled, []
        for key, request in new:
            self._batch.add(key, request)
        for key in cancelled:
            self._batch.cancel(key)
        return not self._closed

    def _publish(self, events: list[Event]) -> None:
        """Hand events to their readers: one wake-up per event loop and step."""
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[QueueStream, TokenDelta | EngineError]]] = {}
        with self._wake:
            for key, item in events:
                stream = self._streams.get(key)
                if stream is None:
                    continue
                if isinstance(item, EngineError) or item.finish_reason:
                    del self._streams[key]
                by_loop.setdefault(stream.loop, []).append((stream, item))
        for loop, items in by_loop.items():
            try:
                loop.call_soon_threadsafe(_deliver, items)
            except RuntimeError:  # the loop is closed: nobody reads any more
                for stream, _ in items:
                    self.cancel(stream.key)


def _deliver(items: list[tuple[QueueStream, TokenDelta | EngineError]]) -> None:
    for stream, item in items:
        stream.deliver(item)
