"""The default engine: continuous batching over a transformers model, in a process of its own."""

import asyncio
import logging
import threading
from pathlib import Path
from queue import SimpleQueue

from warren.data.model_inputs import TOKENIZER_FILE, Inputs, tokenizer_from_json
from warren.errors import ReleaseError, WarrenError
from warren.inference.engine import (
    EngineBusyError,
    EngineClosedError,
    EngineError,
    EngineStats,
    Event,
    GenerationRequest,
    TokenDelta,
)
from warren.inference.engine_options import EngineOptions, check_request
from warren.inference.streams import QueueStream
from warren.inference.transformers_engine.process import StepOutput, WorkerCommand, WorkerConfig, WorkerProcess

logger = logging.getLogger(__name__)

Delivery = tuple[QueueStream, TokenDelta | EngineError]


class TransformersEngine:
    """An `Engine` whose model is loaded by another process, onto the GPU where there is one.

    Args:
        folder: A model folder that Warren wrote; it may be deleted afterwards.
        options: The engine's size.
        num_threads: Compute threads. More threads than cores make a step ten times slower, because barriers spin.
        process: A worker process that was started before the folder existed; it ends with the engine.

    Raises:
        ReleaseError: The folder does not load.
        ConfigError: The options do not fit the model.
    """

    def __init__(
        self, folder: Path, options: EngineOptions, num_threads: int = 1, process: WorkerProcess | None = None
    ) -> None:
        self._process = process or WorkerProcess()
        try:
            self._stats = self._load(WorkerConfig(folder, options, num_threads, logger.getEffectiveLevel()))
            self.inputs = Inputs.load(folder)
            self.tokenizer = tokenizer_from_json((folder / TOKENIZER_FILE).read_text())
        except BaseException:
            self._process.end()
            raise
        self._max_requests = options.num_slots + options.max_waiting
        self._lock = threading.Lock()
        self._streams: dict[int, QueueStream] = {}
        self._last_key = 0
        self._closed = False
        self._commands: SimpleQueue[WorkerCommand | None] = SimpleQueue()
        threading.Thread(target=self._send, name="warren-engine-out", daemon=True).start()
        self._reader = threading.Thread(target=self._receive, name="warren-engine-in", daemon=True)
        self._reader.start()

    @property
    def is_alive(self) -> bool:
        """Whether the worker process runs and takes requests."""
        return not self._closed

    @property
    def max_context_tokens(self) -> int:
        """Most tokens of prompt and answer together."""
        return self._stats.max_context_tokens

    @property
    def pid(self) -> int:
        """The process id of the worker."""
        return self._process.pid

    def submit(self, request: GenerationRequest) -> QueueStream:
        """Queue a request; see `Engine.submit`."""
        check_request(request, self.inputs.tokens, self.max_context_tokens)
        with self._lock:
            if self._closed:
                raise EngineClosedError("the engine no longer runs")
            if len(self._streams) >= self._max_requests:
                raise EngineBusyError(f"{len(self._streams)} requests are running or waiting already")
            self._last_key += 1
            stream = self._streams[self._last_key] = QueueStream(self._last_key, self.cancel)
            # Under the lock, so that a cancellation never overtakes its request.
            self._commands.put((stream.key, request))
        return stream

    def cancel(self, key: int) -> None:
        """Free a request's slot before the next step; harmless after its end."""
        with self._lock:
            if self._streams.pop(key, None):
                self._commands.put((key, None))

    def stats(self) -> EngineStats:
        """Return counts as of the last step; callable from any thread."""
        return self._stats

    def close(self) -> None:
        """End the process and fail what is unfinished."""
        self._process.end()
        if self._reader is not threading.current_thread():
            self._reader.join(timeout=60.0)

    def _load(self, config: WorkerConfig) -> EngineStats:
        try:
            self._process.send(config)
            message = self._process.receive()
        except (EOFError, OSError):
            code = self._process.end()
            raise ReleaseError(f"the engine's process ended with code {code} while it loaded {config.folder}") from None
        if isinstance(message, WarrenError):
            raise message
        return message.stats

    def _send(self) -> None:
        """Send commands, from a thread of its own, because the pipe may be full while the worker computes."""
        while command := self._commands.get():
            try:
                self._process.send(command)
            except OSError:
                return  # the process has ended, which `_receive` handles

    def _receive(self) -> None:
        error: WarrenError = EngineClosedError("the engine's process ended")
        try:
            while isinstance(message := self._process.receive(), StepOutput):
                self._stats = message.stats
                self._publish(message.events)
            error = message
        except EOFError:
            pass  # the engine was closed, or the process killed
        finally:
            self._fail_all(EngineClosedError(str(error)))

    def _fail_all(self, error: EngineError) -> None:
        with self._lock:
            self._closed = True
            keys = list(self._streams)
        self._commands.put(None)
        self._publish(tuple((key, error) for key in keys))
        self._process.end()

    def _publish(self, events: tuple[Event, ...]) -> None:
        """Deliver events to their streams, with one call per event loop and step."""
        by_loop: dict[asyncio.AbstractEventLoop, list[Delivery]] = {}
        with self._lock:
            for key, result in events:
                stream = self._streams.get(key)
                if stream is None:
                    continue
                if isinstance(result, EngineError) or result.finish_reason:
                    del self._streams[key]
                by_loop.setdefault(stream.loop, []).append((stream, result))
        for loop, deliveries in by_loop.items():
            try:
                loop.call_soon_threadsafe(_deliver, deliveries)
            except RuntimeError:  # the loop is closed: nobody reads any more
                for stream, _ in deliveries:
                    self.cancel(stream.key)


def _deliver(deliveries: list[Delivery]) -> None:
    for stream, result in deliveries:
        stream.deliver(result)
