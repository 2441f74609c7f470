"""The reading end of a request whose engine works in another thread."""

import asyncio
from collections.abc import AsyncIterator, Callable

from warren.inference.engine import EngineClosedError, EngineError, TokenDelta


class QueueStream:
    """A `TokenStream`; everything runs on the reader's event loop, where it must be made.

    Args:
        key: The request's, for its engine.
        cancel: Tells the engine that nobody reads any more; harmless after the end.
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
        item = await self._queue.get()
        if isinstance(item, EngineError):
            self._ended = True
            raise item
        self._ended = item.finish_reason is not None
        return item

    def abort(self) -> None:
        """Free the request's slot now; harmless after the end."""
        self._cancel(self.key)
        if not self._ended:
            self._queue.put_nowait(EngineClosedError("the request was aborted"))

    def deliver(self, item: TokenDelta | EngineError) -> None:
        """Hand over what comes next."""
        self._queue.put_nowait(item)
