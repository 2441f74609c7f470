"""The process that owns a model, as the one that started it sees it, and what the two send each other.

Nothing here imports torch: who only asks an engine starts in a second and stays small.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from warren.errors import WarrenError
from warren.inference.child import start_child
from warren.inference.engine import EngineStats, Event, GenerationRequest
from warren.inference.limits import EngineOptions

_ENTRY = "warren.inference.transformers_engine.worker:main"


@dataclass(frozen=True)
class WorkerConfig:
    """The first message to a worker: what to load.

    Attributes:
        folder: A model folder that Warren wrote.
        options: How much to hold.
        num_threads: Compute threads. More than the cores it owns makes spinning barriers, ten times slower.
        log_level: Of what is worth sending.
    """

    folder: Path
    options: EngineOptions
    num_threads: int
    log_level: int


WorkerCommand = tuple[int, GenerationRequest | None]
"""Every later message to it: a request under its key, or None: the request of this key is cancelled."""


@dataclass(frozen=True)
class StepOutput:
    """What a step gave, and where the engine stands after it. The first, without events, says that it is loaded."""

    events: tuple[Event, ...]
    stats: EngineStats


WorkerMessage = StepOutput | WarrenError | logging.LogRecord
"""What a worker sends. An error is its last."""


class WorkerProcess:
    """A process that imports what it needs and then waits for its order. It ends when its starter does."""

    def __init__(self) -> None:
        self._process, self._connection = start_child(_ENTRY)

    @property
    def pid(self) -> int:
        """As the system knows it."""
        return self._process.pid

    def send(self, message: WorkerConfig | WorkerCommand) -> None:
        """Hand a message over; waits while the pipe is full.

        Raises:
            OSError: The process is gone.
        """
        self._connection.send(message)

    def receive(self) -> StepOutput | WarrenError:
        """Wait for the next message; what the process logs is logged here meanwhile.

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
        """End the process, whatever it does, and return its exit code; harmless when repeated."""
        self._process.kill()
        return self._process.wait()
