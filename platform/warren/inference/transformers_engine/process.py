"""The worker process of an engine, as its parent sees it, and the messages between the two.

Nothing here imports torch, so that the parent starts in a second and stays small.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from warren.errors import WarrenError
from warren.inference.child_process import start_child
from warren.inference.engine import EngineStats, Event, GenerationRequest
from warren.inference.engine_options import EngineOptions

_ENTRY = "warren.inference.transformers_engine.worker:main"


@dataclass(frozen=True)
class WorkerConfig:
    """The first message to a worker: what to load.

    Attributes:
        folder: A model folder that Warren wrote.
        options: The engine's size.
        num_threads: Compute threads. More threads than cores make a step ten times slower, because barriers spin.
        log_level: Lower records are not sent.
    """

    folder: Path
    options: EngineOptions
    num_threads: int
    log_level: int


WorkerCommand = tuple[int, GenerationRequest | None]
"""Every later message to a worker: a key with its request, or with None to cancel the request of this key."""


@dataclass(frozen=True)
class StepOutput:
    """The events of one step and the counters after it. The first one has no events: the model is loaded."""

    events: tuple[Event, ...]
    stats: EngineStats


WorkerMessage = StepOutput | WarrenError | logging.LogRecord
"""A message from a worker. An error is its last one."""


class WorkerProcess:
    """A process that imports torch and transformers, then waits for a `WorkerConfig`. It ends with its parent."""

    def __init__(self) -> None:
        self._process, self._connection = start_child(_ENTRY)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def send(self, message: WorkerConfig | WorkerCommand) -> None:
        """Send a message; waits while the pipe is full.

        Raises:
            OSError: The process is gone.
        """
        self._connection.send(message)

    def receive(self) -> StepOutput | WarrenError:
        """Wait for the next message; log records that come first are logged here.

        Raises:
            EOFError: The process is gone.
        """
        while True:
            try:
                message: WorkerMessage = self._connection.recv()
            except OSError:
                raise EOFError from None
            if not isinstance(message, logging.LogRecord):
                return message
            logging.getLogger(message.name).handle(message)

    def end(self) -> int:
        """Kill the process and return its exit code; harmless when repeated."""
        self._process.kill()
        return self._process.wait()
