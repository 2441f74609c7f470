"""Reading several streams at a bounded pace: what comes meanwhile is joined."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress

from warren.inference.engine import EngineError, TokenDelta, TokenStream, join_deltas

ChoiceDelta = tuple[int, TokenDelta]
"""The number of a stream, and what it gave."""


class _Inbox:
    """What the streams gave since it was last emptied."""

    def __init__(self, num_streams: int) -> None:
        self._deltas: dict[int, list[TokenDelta]] = {}
        self._num_open = num_streams
        self.error: EngineError | None = None
        self.arrived, self.done = asyncio.Event(), asyncio.Event()

    async def fill(self, number: int, stream: TokenStream) -> None:
        """Read a stream to its end."""
        try:
            async for delta in stream:
                self._deltas.setdefault(number, []).append(delta)
                self.arrived.set()
        except EngineError as error:
            self.error = self.error or error
        self._num_open -= 1
        if self.error or not self._num_open:
            self.done.set()
            self.arrived.set()

    def take(self) -> tuple[ChoiceDelta, ...]:
        taken = tuple((number, join_deltas(deltas)) for number, deltas in self._deltas.items())
        self._deltas.clear()
        if not self.done.is_set():
            self.arrived.clear()
        return taken


async def merge_streams(
    streams: Sequence[TokenStream], pause_s: float | None
) -> AsyncGenerator[tuple[ChoiceDelta, ...]]:
    """Yield what the streams give; whoever leaves early aborts them.

    Every hand-over between processes costs about as much as computing a token of a small model. So a reader that
    shows tokens takes them at a pace that people cannot tell from single ones, and any other takes them at once.

    Args:
        streams: Each is read to its end.
        pause_s: The first deltas come at once, later ones at least so far apart; None for all at the end.

    Raises:
        EngineError: A stream failed; what came before was yielded, unless all was to come at the end.
    """
    loop = asyncio.get_running_loop()
    inbox = _Inbox(len(streams))
    tasks = [asyncio.create_task(inbox.fill(number, stream)) for number, stream in enumerate(streams)]
    next_at = None if pause_s is None else loop.time()
    try:
        is_last = False
        while not is_last:
            await inbox.arrived.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(next_at):
                    await inbox.done.wait()
            if inbox.error and pause_s is None:
                break  # of an answer that is wanted whole, nothing is told: it may be asked for again elsewhere
            is_last = inbox.done.is_set()  # asked before taking: what comes while the reader is busy is taken next
            if items := inbox.take():
                yield items
            next_at = None if pause_s is None else loop.time() + pause_s
        if inbox.error:
            raise inbox.error
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
