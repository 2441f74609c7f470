"""Asking the engines behind a deployment handle, as if they were here."""

import logging
from collections.abc import AsyncGenerator

from ray.exceptions import RayActorError, RayError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from warren_serve.backend import Piece, Question
from warren_serve.errors import ApiError, overloaded, unavailable

logger = logging.getLogger(__name__)

_ATTEMPTS = 2


class RemoteBackend:
    """A `Backend` over the engine deployment. Serve chooses the replica, starts missing ones and queues meanwhile.

    Args:
        engines: The handle of a deployment whose `answer` yields pieces, or an `ApiError` as the last item.
    """

    def __init__(self, engines: DeploymentHandle) -> None:
        self._engines = engines.options(stream=True)
        self._closed = False

    @property
    def is_alive(self) -> bool:
        """Whether questions are passed on. It says nothing about engines: there may rightly be none yet."""
        return not self._closed

    async def ask(self, question: Question) -> AsyncGenerator[Piece]:
        """See `Backend.ask`. A replica that dies before its first piece costs the client nothing but time."""
        for attempt in range(1, _ATTEMPTS + 1):
            pieces = self._engines.answer.remote(question)
            begun = False
            try:
                async for piece in pieces:
                    if isinstance(piece, ApiError):
                        raise piece
                    begun = True
                    yield piece
                return
            except BackPressureError:
                raise overloaded("Too many requests are waiting; try again shortly.") from None
            except (RayActorError, DeploymentUnavailableError) as error:
                logger.warning("attempt %d: an engine is gone: %s", attempt, str(error).splitlines()[0])
                if begun or attempt == _ATTEMPTS:
                    raise unavailable("The replica that answered is gone; try again.") from None
            except (RayError, RayServeException, TaskCancelledError) as error:
                logger.exception("an engine failed outside its own error handling")
                raise unavailable("The replica that answered failed; try again.") from error
            finally:
                pieces.cancel()  # frees the slots when the reader left; harmless after the end

    def close(self) -> None:
        """Pass nothing on any more."""
        self._closed = True
