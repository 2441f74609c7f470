"""The process that owns the model: commands come in over a pipe, what every step gave goes out.

It shares neither Python's lock nor an event loop with those who decode images and write answers, so no step waits for
them. When the other end of the pipe closes, for whatever reason, it ends at once: nothing here is worth keeping.
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


def turn(batch: Scheduler, commands: SimpleQueue[WorkerCommand], publish: Callable[[WorkerMessage], None]) -> None:
    """Do what is commanded, step by step, until the model is broken.

    Args:
        batch: Nobody else uses it.
        commands: Are waited for while there is nothing else to do.
        publish: Gets a report after every step, and an `EngineClosedError` at the end.
    """
    publish(StepOutput((), batch.stats()))
    try:
        while True:
            for key, request in _waiting(commands, block=not batch.has_work):
                if request:
                    batch.add(key, request)
                else:
                    batch.cancel(key)
            publish(StepOutput(tuple(batch.step()), batch.stats()))
    except Exception as error:
        logger.exception("the engine died")
        publish(EngineClosedError(f"the engine died: {error}"))


def main(descriptor: int) -> None:
    """Serve one engine over the pipe with this file descriptor. Everything else it gets to know is in its order."""
    connection, lock = Connection(descriptor), threading.Lock()

    def publish(message: WorkerMessage) -> None:
        with lock:
            connection.send(message)

    try:
        order: WorkerConfig = connection.recv()
        _log_through(publish, order.log_level)
        torch.set_num_threads(max(1, order.num_threads))
        batch = _load(order)
    except (EOFError, OSError):
        return  # nobody is there any more
    except WarrenError as error:
        publish(error)
        return
    except Exception:
        logger.exception("the engine does not start")
        raise
    commands: SimpleQueue[WorkerCommand] = SimpleQueue()
    threading.Thread(target=_read, args=(connection, commands), daemon=True).start()
    turn(batch, commands, publish)


def _load(order: WorkerConfig) -> Scheduler:
    model, inputs, tokenizer_json = load_bundle(order.folder)
    placed = model.to("cuda") if torch.cuda.is_available() else model
    return Scheduler(placed, inputs, tokenizer_from_json(tokenizer_json), order.options)


def _read(connection: Connection, commands: SimpleQueue[WorkerCommand]) -> None:
    try:
        while True:
            commands.put(connection.recv())
    except (EOFError, OSError):
        os._exit(0)  # in the middle of a step: its reader is gone


def _waiting(commands: SimpleQueue[WorkerCommand], block: bool) -> list[WorkerCommand]:
    taken = [commands.get()] if block else []
    try:
        while True:
            taken.append(commands.get_nowait())
    except Empty:
        return taken


def _log_through(publish: Callable[[WorkerMessage], None], level: int) -> None:
    """Send what Warren logs to the other end: it goes wherever that one's records go."""

    class Sender(QueueHandler):
        def enqueue(self, record: logging.LogRecord) -> None:
            publish(record)

    warren = logging.getLogger("warren")
    warren.handlers = [Sender(SimpleQueue())]
    warren.setLevel(level)
    warren.propagate = False
