"""The process that owns the model: it reads commands from a pipe and writes the output of every step to it.

It shares neither Python's global lock nor an event loop with the code that decodes images and writes responses, so no
step waits for them. When the parent's end of the pipe closes, the process ends at once: it holds nothing worth saving.
"""

import logging
import os
import threading
from collections.abc import Callable
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue

import torch

from warren.data.model_inputs import tokenizer_from_json
from warren.errors import WarrenError
from warren.inference.engine import EngineClosedError
from warren.inference.transformers_engine.process import StepOutput, WorkerCommand, WorkerConfig, WorkerMessage
from warren.inference.transformers_engine.scheduler import Scheduler
from warren.models import load_bundle

logger = logging.getLogger(__name__)


def run(scheduler: Scheduler, commands: SimpleQueue[WorkerCommand], publish: Callable[[WorkerMessage], None]) -> None:
    """Carry out commands and run steps until the model is broken.

    Args:
        scheduler: Nothing else uses it.
        commands: The loop waits for the next one while no request runs.
        publish: Takes a `StepOutput` after every step, and an `EngineClosedError` at the end.
    """
    publish(StepOutput((), scheduler.stats()))
    try:
        while True:
            for key, request in _pending(commands, block=not scheduler.has_work):
                if request:
                    scheduler.add(key, request)
                else:
                    scheduler.cancel(key)
            publish(StepOutput(tuple(scheduler.step()), scheduler.stats()))
    except Exception as error:
        logger.exception("the engine died")
        publish(EngineClosedError(f"the engine died: {error}"))


def main(descriptor: int) -> None:
    """Run one engine over the pipe with this file descriptor. Its first message is a `WorkerConfig`."""
    connection, lock = Connection(descriptor), threading.Lock()

    def publish(message: WorkerMessage) -> None:
        with lock:
            connection.send(message)

    try:
        config: WorkerConfig = connection.recv()
        _forward_logs(publish, config.log_level)
        torch.set_num_threads(max(1, config.num_threads))
        scheduler = _load(config)
    except (EOFError, OSError):
        return  # the parent has ended
    except WarrenError as error:
        publish(error)
        return
    except Exception:
        # The process ends with an exit code, which the parent reports.
        logger.exception("the engine does not start")
        raise
    commands: SimpleQueue[WorkerCommand] = SimpleQueue()
    threading.Thread(target=_read, args=(connection, commands), daemon=True).start()
    run(scheduler, commands, publish)


def _load(config: WorkerConfig) -> Scheduler:
    model, inputs, tokenizer_json = load_bundle(config.folder)
    placed = model.to("cuda") if torch.cuda.is_available() else model
    return Scheduler(placed, inputs, tokenizer_from_json(tokenizer_json), config.options)


def _read(connection: Connection, commands: SimpleQueue[WorkerCommand]) -> None:
    try:
        while True:
            commands.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)  # even in the middle of a step, because the parent has ended


def _pending(commands: SimpleQueue[WorkerCommand], block: bool) -> list[WorkerCommand]:
    """Return all commands that have come; `block` waits for the first."""
    pending = [commands.get()] if block else []
    try:
        while True:
            pending.append(commands.get_nowait())
    except Empty:
        return pending


def _forward_logs(publish: Callable[[WorkerMessage], None], level: int) -> None:
    """Send Warren's log records to the parent, which logs them as its own."""

    class Sender(QueueHandler):
        def enqueue(self, record: logging.LogRecord) -> None:
            publish(record)

    warren = logging.getLogger("warren")
    warren.handlers = [Sender(SimpleQueue())]
    warren.setLevel(level)
    warren.propagate = False
