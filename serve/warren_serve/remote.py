"""Asking what is behind deployment handles, engines and accounts, as if it were here."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from dataclasses import replace

from grpc import RpcError
from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from warren_serve.admission import OwnAccounts
from warren_serve.backend import Piece, Question
from warren_serve.errors import ApiError, overloaded, unavailable
from warren_serve.ratelimit import Limits, Verdict

logger = logging.getLogger(__name__)

_ATTEMPTS = 2
_ACCOUNTS_TIMEOUT_S = 1.0


class RemoteBackend:
    """A `Backend` over the engine deployment. Serve chooses the replica, starts missing ones and queues meanwhile.

    Args:
        engines: The handle of a deployment whose `answer` yields pieces, or an `ApiError` as the last item.
    """

    def __init__(self, engines: DeploymentHandle) -> None:
        # By gRPC between the replicas: as objects of Ray's, pieces cost more (docs/adr/0005 has figures).
        self._engines = engines.options(stream=True, _by_reference=False)
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
            except (RayError, RayServeException, RpcError) as error:
                logger.exception("an engine failed outside its own error handling")
                raise unavailable("The replica that answered failed; try again.") from error
            finally:
                pieces.cancel()  # frees the slots when the reader left; harmless after the end

    def close(self) -> None:
        """Pass nothing on any more."""
        self._closed = True


class RemoteAccounts:
    """The accounts that all ingress replicas share. While they cannot be asked, this process keeps its own.

    Args:
        accounts: The handle of a deployment with the methods of `Accounts`.
        limits: Of every key.
    """

    def __init__(self, accounts: DeploymentHandle, limits: Limits) -> None:
        self._accounts = accounts
        self._own = OwnAccounts(limits)

    async def enter(self, key: str) -> Verdict:
        """See `Accounts.enter`."""
        return await self._ask("enter", key)

    async def charge(self, key: str, num_tokens: int) -> Verdict:
        """See `Accounts.charge`."""
        return await self._ask("charge", key, num_tokens)

    def leave(self, key: str, lease: int, num_unused_tokens: int = 0) -> None:
        """See `Accounts.leave`. One that is lost on the way ends with its lease."""
        if lease < 0:
            self._own.leave(key, -lease, num_unused_tokens)
        elif lease or num_unused_tokens:  # what was not counted has nothing to give back
            self._accounts.leave.remote(key, lease, num_unused_tokens)

    async def _ask(self, method: str, *args: str | int) -> Verdict:
        try:
            async with asyncio.timeout(_ACCOUNTS_TIMEOUT_S):
                verdict: Verdict = await getattr(self._accounts, method).remote(*args)
                return verdict
        except (RayError, RayServeException, TimeoutError) as error:
            logger.warning("the shared accounts do not answer, counting here: %r", error)
        own: Verdict = await getattr(self._own, method)(*args)
        return replace(own, lease=-own.lease)  # tells where it was opened
