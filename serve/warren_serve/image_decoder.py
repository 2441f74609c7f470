"""Decoding clients' images in processes that can be ended.

Some files take far longer than their size suggests: a JPEG of empty scans, a PNG of a million empty chunks. A thread
cannot be stopped in the middle of one, but a process can. So a request's images are decoded under a limit of CPU time,
which the kernel enforces. Images that exceed it cost their sender a 400, and others a short wait.
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
from warren.inference.child import start_child
from warren_serve.errors import ApiError, bad_request, unavailable
from warren_serve.image_checks import check_image

logger = logging.getLogger(__name__)

_CRASHES = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE})


@dataclass(frozen=True)
class _Order:
    """The images of one request, with the names of their fields."""

    images: Sequence[tuple[bytes, str]]
    inputs: Inputs
    max_pixels: int
    timeout_s: float


class ImageDecoder:
    """A few processes that decode images. Thread-safe: each call has a process to itself.

    Args:
        num_processes: Calls at the same time; more wait.
        max_pixels: Of one image.
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
        """Check and decode images; waits for them, so call it off the event loop.

        Args:
            inputs: How the model sees images.
            images: Encoded.
            params: Names of the fields they came in.

        Returns:
            uint8 (num_images, 3, size_px, size_px).

        Raises:
            ApiError: 400; an image cannot be used, or takes too long. 503; the process was ended by something else.
        """
        if not images:
            return inputs.pixels(())
        worker = self._workers.get()
        try:
            named = tuple(zip(images, params, strict=True))
            return worker.run(_Order(named, inputs, self._max_pixels, self._timeout_s))
        finally:
            self._workers.put(worker)

    def close(self) -> None:
        """End the processes; harmless when repeated."""
        for worker in self._all:
            worker.end()


class _Worker:
    """One process, started when it is needed and again after it was ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def start(self) -> Connection:
        if self._connection is None:
            self._process, self._connection = start_child("warren_serve.image_decoder:main")
        return self._connection

    def run(self, order: _Order) -> np.ndarray:
        connection = self.start()
        found: list[np.ndarray] = []
        try:
            connection.send(order)
            while len(found) < len(order.images):
                answer: np.ndarray | ApiError = connection.recv()
                if isinstance(answer, ApiError):
                    raise answer
                found.append(answer)
        except (EOFError, OSError):
            raise _ended(self.end(), order.timeout_s, order.images[len(found)][1]) from None
        return np.concatenate(found)

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
    """Say why there are no pixels, of the image in this field."""
    if code == -signal.SIGPROF:
        message = f"The images take more than {timeout_s:g} s of CPU time to decode; save this one anew, or send fewer."
        return bad_request(message, "invalid_image", param)
    logger.error("the process that decodes images ended with exit code %d", code)
    if -code in _CRASHES:
        return bad_request("The image cannot be decoded; save it anew and send that.", "invalid_image", param)
    return unavailable("The process that decodes images was ended; try again.")


def main(fd: int) -> None:
    """Decode what comes, until the one that started this process is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process, whatever library it is in
    with Connection(fd) as connection:
        while True:
            try:
                order: _Order = connection.recv()
            except (EOFError, OSError):
                return
            with suppress(OSError):  # the starter has ended meanwhile
                _carry_out(order, connection)


def _carry_out(order: _Order, connection: Connection) -> None:
    """Send the pixels of each image; an error is the last answer."""
    signal.setitimer(signal.ITIMER_PROF, order.timeout_s)
    for number, (data, param) in enumerate(order.images, start=1):
        answer = _decode(data, param, order)
        is_last = number == len(order.images) or isinstance(answer, ApiError)
        if is_last:
            signal.setitimer(signal.ITIMER_PROF, 0)
        connection.send(answer)
        if is_last:
            return


def _decode(data: bytes, param: str, order: _Order) -> np.ndarray | ApiError:
    try:
        found = check_image(data, order.max_pixels, param)
        return order.inputs.pixels((data,), formats=(found,))
    except ApiError as error:
        return error
    except BadSampleError as error:
        return bad_request(f"The image cannot be decoded: {error}.", "invalid_image", param)
    except Exception:  # Pillow's parsers raise many kinds
        return bad_request("The image cannot be decoded.", "invalid_image", param)
