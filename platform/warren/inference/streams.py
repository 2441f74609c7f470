"""Token streams: the reading end of one request, and several of them merged at a bounded pace."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import suppress

from warren.inference.engine import EngineClosedError, EngineError, TokenDelta, TokenStream, join_deltas

ChoiceDelta = tuple[int, TokenDelta]
"""The index of a choice, and what was added to it."""


class QueueStream:
    """A `TokenStream` whose engine works in another thread.

    Every method runs on the reader's event loop, and so does the constructor.

    Args:
        key: The engine's key for the request.
        cancel: Called with the key when nobody reads any more; harmless after the end.
    """

    def __init__(self, key: int, cancel: Callable[[int], None]) -> None:
        self._cancel = cancel
        self._queue: asyncio.Queue[TokenDelta | EngineError] = asyncio.Queue()
        self._ended = False
        self.key = key
        self.loop = asyncio.get_running_loop()

    def __aiter__(self) -> AsyncIterator[TokenDelta]:
        return self

    async def __anext__(self) -> TokenDelta:
        if self._ended:
            raise StopAsyncIteration
        result = await self._queue.get()
        if isinstance(result, EngineError):
            self._ended = True
            raise result
        self._ended = result.finish_reason is not None
        return result

    def abort(self) -> None:
        """Free the request's slot now; harmless after the end."""
        self._cancel(self.key)
        if not self._ended:
            # The engine sends nothing more for a cancelled request, and a reader may be waiting.
            self._queue.put_nowait(EngineClosedError("the request was aborted"))

    def deliver(self, result: TokenDelta | EngineError) -> None:
        """Append the next delta, or the error that ends the stream."""
        self._queue.put_nowait(result)


class _DeltaBuffer:
    """The deltas that several streams have produced since the buffer was last drained."""

    def __init__(self, num_streams: int) -> None:
        self._deltas: dict[int, list[TokenDelta]] = {}
        self._num_open = num_streams
        self.error: EngineError | None = None
        self.has_news, self.is_complete = asyncio.Event(), asyncio.Event()

    async def fill(self, index: int, stream: TokenStream) -> None:
        """Read one stream to its end."""
        try:
            async for delta in stream:
                self._deltas.setdefault(index, []).append(delta)
                self.has_news.set()
        except EngineError as error:
            self.error = self.error or error
        self._num_open -= 1
        if self.error or not self._num_open:
            self.is_complete.set()
            self.has_news.set()

    def drain(self) -> tuple[ChoiceDelta, ...]:
        """Return one joined delta for each stream that produced any, and forget them."""
        drained = tuple((index, join_deltas(deltas)) for index, deltas in self._deltas.items())
        self._deltas.clear()
        if not self.is_complete.is_set():
            self.has_news.clear()
        return drained


async def merge_streams(
    streams: Sequence[TokenStream], interval_s: float | None
) -> AsyncGenerator[tuple[ChoiceDelta, ...]]:
    """Read several streams at once and yield their deltas, joined, at a bounded pace.

    Passing a message between processes costs about as much as computing a token of a small model. So a reader that
    streams takes tokens at intervals too short for people to see, and a reader of whole answers takes them at the end.

    Args:
        streams: Each is read to its end.
        interval_s: Shortest time between two yields; the first deltas come at once. None yields once, at the end.

    Raises:
        EngineError: A stream failed. The deltas before it were yielded, unless `interval_s` is None.
    """
    loop = asyncio.get_running_loop()
    buffer = _DeltaBuffer(len(streams))
    tasks = [asyncio.create_task(buffer.fill(index, stream)) for index, stream in enumerate(streams)]
    next_at = None if interval_s is None else loop.time()
    try:
        is_last = False
        while not is_last:
            await buffer.has_news.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(next_at):
                    await buffer.is_complete.wait()
            if buffer.error and interval_s is None:
                break  # nothing of a failed whole answer is yielded, so it can be asked for again elsewhere
            is_last = buffer.is_complete.is_set()  # read before draining: later deltas belong to the next round
            if deltas := buffer.drain():
                yield deltas
            next_at = None if interval_s is None else loop.time() + interval_s
        if buffer.error:
            raise buffer.error
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
