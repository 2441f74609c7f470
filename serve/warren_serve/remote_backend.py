"""Backend and accounts behind deployment handles."""

import asyncio
import contextvars
import logging
import pickle
import random
from collections.abc import AsyncGenerator, Iterable
from dataclasses import replace
from typing import Any

from prometheus_client.metrics_core import Metric
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from warren.compat.ray_serve import GRPC_MESSAGE_LIMIT_BYTES, streaming_by_grpc, streaming_by_object
from warren_serve.admission import OwnAccounts
from warren_serve.backend import EngineRequest, ResponseChunk
from warren_serve.errors import ApiError, overloaded, unavailable
from warren_serve.ratelimit import RateLimitDecision, RateLimits
from warren_serve.replay import Delivered, OtherAnswerError

logger = logging.getLogger(__name__)

_ATTEMPTS = 3  # no more, because a request may be what ends the replicas
_SEED_BITS = 62
_ACCOUNTS_TIMEOUT_S = 1.0
_MAX_GRPC_BYTES = GRPC_MESSAGE_LIMIT_BYTES // 2  # there is more in a message than what is counted


class RemoteBackend:
    """A `Backend` over the engine deployment. Serve chooses the replica, starts missing ones and queues meanwhile.

    Args:
        engines: The handle of a deployment whose `answer` yields chunks, or an `ApiError` as the last item.
        seeds: Whether every sampled answer gets a seed, so that another replica can finish it. It costs some engines
            speed.
    """

    def __init__(self, engines: DeploymentHandle, seeds: bool = False) -> None:
        self._seeds = seeds
        self._by_grpc = streaming_by_grpc(engines)
        self._by_object = streaming_by_object(engines)
        self._closed = False

    @property
    def is_alive(self) -> bool:
        """Whether requests are passed on. Engines may be missing: Serve starts them when they are needed."""
        return not self._closed

    async def ask(self, engine_request: EngineRequest) -> AsyncGenerator[ResponseChunk]:
        """See `Backend.ask`. If a replica dies, another one is asked, and goes on where the first one stopped."""
        engines = self._by_grpc if _num_bytes(engine_request) <= _MAX_GRPC_BYTES else self._by_object
        engine_request = _with_seed(engine_request) if self._seeds else engine_request
        delivered = Delivered()
        for attempt in range(1, _ATTEMPTS + 1):
            replay = delivered.replay()
            chunks = engines.answer.remote(engine_request)
            try:
                async for chunk in chunks:
                    if isinstance(chunk, ApiError):
                        raise chunk
                    if (rest := replay.rest(chunk)) is not None:
                        delivered.add(rest)
                        yield replace(rest, num_lost_replicas=attempt - 1) if attempt > 1 else rest
                return
            except ApiError:
                raise
            except (Exception, asyncio.CancelledError) as error:
                if _is_cancelled(error):
                    raise
                if not _is_gone(error) or attempt == _ATTEMPTS:
                    raise _api_error(error) from None
                logger.warning("an engine is gone, asking another: %r", error)
            finally:
                _cancel(chunks)  # frees the slots when the reader left; harmless after the end

    def metrics(self) -> Iterable[Metric]:
        """See `Backend.metrics`."""
        return ()

    def close(self) -> None:
        """Pass no more requests on."""
        self._closed = True


class RemoteAccounts:
    """The accounts that all ingress replicas share. While they do not answer, this process keeps accounts of its own.

    Args:
        accounts: The handle of a deployment with the methods of `Accounts`.
        limits: The limits of every key.
    """

    def __init__(self, accounts: DeploymentHandle, limits: RateLimits) -> None:
        self._accounts = accounts
        self._own = OwnAccounts(limits)
        self._own_leases: set[str] = set()

    async def enter(self, key: str, lease: str) -> RateLimitDecision:
        """See `Accounts.enter`."""
        decision = await self._ask("enter", key, lease)
        if decision is None:
            decision = await self._own.enter(key, lease)
            self._note(lease, decision)
        return decision

    async def charge(self, key: str, lease: str, num_tokens: int) -> RateLimitDecision:
        """See `Accounts.charge`."""
        decision = await self._ask("charge", key, lease, num_tokens)
        if decision is None:
            decision = await self._own.charge(key, lease, num_tokens)
            self._note(lease, decision)
        return decision

    def leave(self, key: str, lease: str, num_used_tokens: int = 0) -> None:
        """See `Accounts.leave`. If the message is lost, the lease ends when its time is up.

        The shared accounts get it in any case, because they may have opened the lease although their answer was lost.
        """
        notify(self._accounts, "leave", key, lease, num_used_tokens)
        if lease in self._own_leases:
            self._own_leases.remove(lease)
            self._own.leave(key, lease, num_used_tokens)

    def debit(self, key: str, num_tokens: int) -> None:
        """See `Accounts.debit`."""
        notify(self._accounts, "debit", key, num_tokens)

    async def _ask(self, method: str, *args: str | int) -> RateLimitDecision | None:
        """Return the shared accounts' decision; None if they do not answer."""
        try:
            async with asyncio.timeout(_ACCOUNTS_TIMEOUT_S):
                decision: RateLimitDecision = await _call(self._accounts, method, *args)
                return decision
        except (Exception, asyncio.CancelledError) as error:
            if _is_cancelled(error):
                raise
            logger.warning("the shared accounts do not answer, counting here: %r", error)
            return None

    def _note(self, lease: str, decision: RateLimitDecision) -> None:
        if decision.is_allowed:
            self._own_leases.add(lease)


def notify(handle: DeploymentHandle, method: str, *args: Any) -> None:
    """Call a deployment's method without waiting for it. Errors are only logged, because callers are in a `finally`."""
    try:
        _call(handle, method, *args)
    except Exception as error:
        logger.warning("the call of %s could not be sent: %r", method, error)


def _call(handle: DeploymentHandle, method: str, *args: Any) -> Any:
    """Call a method in a context of its own, because Serve cancels a request's calls as soon as its client leaves."""
    return contextvars.Context().run(getattr(handle, method).remote, *args)


def _cancel(chunks: DeploymentResponseGenerator[Any]) -> None:
    try:
        chunks.cancel()
    except (Exception, asyncio.CancelledError) as error:  # it raises the error of the assignment to a replica again
        logger.debug("nothing to cancel: %r", error)


def _num_bytes(engine_request: EngineRequest) -> int:
    """Return the approximate length of a request as a message."""
    return sum(map(len, engine_request.images)) + len(pickle.dumps(engine_request.request))


def _with_seed(engine_request: EngineRequest) -> EngineRequest:
    request = engine_request.request
    if request.seed is not None or request.temperature == 0:
        return engine_request
    return replace(engine_request, request=request.model_copy(update={"seed": random.getrandbits(_SEED_BITS)}))


def _is_cancelled(error: BaseException) -> bool:
    """Whether this request itself is cancelled; a replica that shuts down cancels its calls, too."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0


def _is_gone(error: BaseException) -> bool:
    return isinstance(error, RayActorError | DeploymentUnavailableError | asyncio.CancelledError)


def _api_error(error: BaseException) -> ApiError:
    """Return the client's error for a failed call. The transport raises many types, plain RuntimeError included."""
    if isinstance(error, BackPressureError):
        return overloaded("Too many requests are waiting; try again shortly.")
    if isinstance(error, OtherAnswerError):
        logger.warning("another replica cannot finish what one began: %s", error)
        return unavailable("The replica that answered is gone; try again.")
    if _is_gone(error):
        logger.warning("the engine that answered is gone: %r", error)
        return unavailable("The replica that answered is gone; try again.")
    logger.error("an engine failed outside its own error handling", exc_info=error)
    return unavailable("The replica that answered failed; try again.")
