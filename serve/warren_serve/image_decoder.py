"""Decoding of clients' images in processes that can be ended.

Some files take far longer than their size suggests, as a JPEG of empty scans or a PNG of a million empty chunks. A
thread cannot be stopped while it decodes one, but a process can. So a request's images are decoded under a limit of CPU
time, which the kernel enforces. A request that exceeds it gets a 400, and other requests wait shortly.
"""

import logging
import queue
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np

from warren.data.model_inputs import Inputs
from warren.errors import BadSampleError
from warren.inference.child_process import start_child
from warren_serve.errors import ApiError, bad_request, unavailable
from warren_serve.image_checks import check_image

logger = logging.getLogger(__name__)

_CRASHES = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE})


@dataclass(frozen=True)
class _DecodeTask:
    """The images of one request, with the names of their fields."""

    images: Sequence[tuple[bytes, str]]
    inputs: Inputs
    max_pixels: int
    timeout_s: float


class ImageDecoder:
    """A pool of processes that decode images. Thread-safe, because each call has a process to itself.

    Args:
        num_processes: Calls at the same time; more wait.
        max_pixels: Width times height of one image.
        timeout_s: CPU time for the images of one call.
    """

    def __init__(self, num_processes: int, max_pixels: int, timeout_s: float) -> None:
        self._max_pixels, self._timeout_s = max_pixels, timeout_s
        self._workers: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._all = [_Worker() for _ in range(num_processes)]
        for worker in self._all:
            self._workers.put(worker)

    def start(self) -> None:
        """Start the processes now, rather than with the first images."""
        for worker in self._all:
            worker.start()

    def pixels(self, inputs: Inputs, images: Sequence[bytes], params: Sequence[str]) -> np.ndarray:
        """Check and decode images. It blocks, so call it off the event loop.

        Args:
            inputs: The model's image preprocessing.
            images: Encoded images.
            params: The field of each image.

        Returns:
            uint8 (num_images, 3, size_px, size_px).

        Raises:
            ApiError: 400; an image cannot be used, or takes too long. 503; the process ended for another reason.
        """
        if not images:
            return inputs.pixels(())
        worker = self._workers.get()
        try:
            named = tuple(zip(images, params, strict=True))
            return worker.run(_DecodeTask(named, inputs, self._max_pixels, self._timeout_s))
        finally:
            self._workers.put(worker)

    def close(self) -> None:
        """End the processes; harmless when repeated."""
        for worker in self._all:
            worker.end()


class _Worker:
    """One process, which is started when it is needed, and again after it has ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def start(self) -> Connection:
        if self._connection is None:
            self._process, self._connection = start_child("warren_serve.image_decoder:main")
        return self._connection

    def run(self, task: _DecodeTask) -> np.ndarray:
        connection = self.start()
        decoded: list[np.ndarray] = []
        try:
            connection.send(task)
            while len(decoded) < len(task.images):
                answer: np.ndarray | ApiError = connection.recv()
                if isinstance(answer, ApiError):
                    raise answer
                decoded.append(answer)
        except (EOFError, OSError):
            raise _ended(self.end(), task.timeout_s, task.images[len(decoded)][1]) from None
        return np.concatenate(decoded)

    def end(self) -> int:
        """End the process, if it runs, and return its exit code."""
        process, connection = self._process, self._connection
        self._process = self._connection = None
        if process is None or connection is None:
            return 0
        connection.close()
        process.kill()
        return process.wait()


def _ended(code: int, timeout_s: float, param: str) -> ApiError:
    """Return the error for a process that ended while it decoded the image in this field."""
    if code == -signal.SIGPROF:
        message = (
            f"The images take more than {timeout_s:g} s of CPU time to decode; save this one again, or send fewer."
        )
        return bad_request(message, "invalid_image", param)
    logger.error("the process that decodes images ended with exit code %d", code)
    if -code in _CRASHES:
        return bad_request("The image cannot be decoded; save it again and send that.", "invalid_image", param)
    return unavailable("The process that decodes images was ended; try again.")


def main(fd: int) -> None:
    """Decode the images of each task, until the parent process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, also inside a library's code
    with Connection(fd) as connection:
        while True:
            try:
                task: _DecodeTask = connection.recv()
            except (EOFError, OSError):
                return
            with suppress(OSError):  # the parent has ended meanwhile
                _carry_out(task, connection)


def _carry_out(task: _DecodeTask, connection: Connection) -> None:
    """Send the pixels of each image; an error is the last message."""
    signal.setitimer(signal.ITIMER_PROF, task.timeout_s)
    for number, (data, param) in enumerate(task.images, start=1):
        answer = _decode(data, param, task)
        is_last = number == len(task.images) or isinstance(answer, ApiError)
        if is_last:
            # Waiting for the next task must not count.
            signal.setitimer(signal.ITIMER_PROF, 0)
        connection.send(answer)
        if is_last:
            return


def _decode(data: bytes, param: str, task: _DecodeTask) -> np.ndarray | ApiError:
    try:
        image_format = check_image(data, task.max_pixels, param)
        return task.inputs.pixels((data,), formats=(image_format,))
    except ApiError as error:
        return error
    except BadSampleError as error:
        return bad_request(f"The image cannot be decoded: {error}.", "invalid_image", param)
    except Exception:  # Pillow's parsers raise many kinds
        return bad_request("The image cannot be decoded.", "invalid_image", param)
