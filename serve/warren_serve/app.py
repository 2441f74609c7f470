"""The deployments of an endpoint (engine, ingress, accounts), and the application that serves one version for good.

    proxy → Ingress (routes, keys, checks) → Engine (tokens, slots, model)
                  ↘ Accounts (what each key used; only where keys have limits)

Ingress and engine are two deployments, because one is limited by connections, the other by slots and memory. The
accounts are one small replica, so that a limit holds for all ingress replicas together. There is no `user_config` and
so no `reconfigure()`, because an exception in it kills a healthy replica.

`warren_serve.app:build` is for benchmarks, tests, and looking at one version at a route of its own. It follows no
alias and no release rolls into it; an endpoint is `warren_serve.front:build`.
"""

import logging
import os
from collections.abc import AsyncGenerator, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, cast

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.handle import DeploymentHandle

from warren.compat.ray_serve import RoutesBuiltLate
from warren.config.json_logs import json_handler, logs_are_json
from warren.errors import ConfigError, ServiceError
from warren.release import ALIASES, locate_release, read_release
from warren_serve.admission import OwnAccounts
from warren_serve.api import create_api
from warren_serve.backend import EngineRequest, ResponseChunk
from warren_serve.cluster_metrics import ClusterMetrics, Mirror
from warren_serve.errors import RETRY_AFTER_S, ApiError
from warren_serve.metrics import engine_registry
from warren_serve.proxy_errors import Disconnects
from warren_serve.ratelimit import Accounts, RateLimitDecision, RateLimits
from warren_serve.remote_backend import RemoteAccounts, RemoteBackend, notify
from warren_serve.replicas import replicas_that_fit
from warren_serve.service import load_backend, open_service
from warren_serve.settings import ServeSettings
from warren_serve.tracing import start_tracing

logger = logging.getLogger(__name__)

INGRESS, ENGINE, ACCOUNTS = "Ingress", "Engine", "Accounts"
_ACCOUNTS_ONGOING = 10_000  # calls never wait
_REFUSALS_ONGOING = 64
_PROXY_QUEUE = 4  # times the requests that an ingress replica takes


@serve.deployment(name=ENGINE, max_surge_percent=100, health_check_period_s=5.0)
class EngineServer:
    """One replica of the model.

    Args:
        settings: `ServeSettings` as JSON values; the release is an immutable version.
        accounts: The accounts deployment; None where tokens are not counted.

    Raises:
        WarrenError: The release does not load or warm up; Serve then keeps the version that serves.
    """

    def __init__(self, settings: Mapping[str, Any], accounts: DeploymentHandle | None = None) -> None:
        log_as_serve_does()
        start_tracing("warren-engine")
        parsed = ServeSettings.parse(settings)
        report_usage = partial(notify, accounts, "debit") if accounts else None
        self._backend = load_backend(parsed, _compute_threads(parsed), report_usage=report_usage)
        self._mirror = Mirror(engine_registry(self._backend.engine.stats, self._backend.version))

    async def answer(self, engine_request: EngineRequest) -> AsyncGenerator[ResponseChunk | ApiError]:
        """Yield the answer chunk by chunk. An error is the last item, because exceptions lose their type on the way.

        A replica whose engine is dead ends at once. It is never busy, so it would get every request until the next
        health check. The requests that have no answer yet go to another replica.
        """
        chunks = self._backend.ask(engine_request)
        try:
            async for chunk in chunks:
                yield chunk
        except ApiError as error:
            if not self._backend.is_alive:
                logger.error("the engine is dead, so this replica ends")
                os._exit(1)
            yield error
        finally:
            await chunks.aclose()

    def check_health(self) -> None:
        """Raise when the engine is dead, so that Serve replaces the replica.

        Raises:
            ServiceError: The engine does not run.
        """
        if not self._backend.is_alive:
            raise ServiceError("the engine does not run")

    def __del__(self) -> None:
        backend = getattr(self, "_backend", None)
        if backend is not None:
            backend.close()
        mirror = getattr(self, "_mirror", None)
        if mirror is not None:
            mirror.close()


@serve.deployment(name=ACCOUNTS, max_ongoing_requests=_ACCOUNTS_ONGOING, ray_actor_options={"num_cpus": 0})
class AccountsServer:
    """The accounts of all keys: one replica, on one event loop. Any change of `args` restarts it without counts.

    Args:
        limits: The fields of `RateLimits`.
    """

    def __init__(self, limits: Mapping[str, Any]) -> None:
        self._accounts = Accounts(RateLimits(**limits))

    async def enter(self, key: str, lease: str) -> RateLimitDecision:
        """See `Accounts.enter`."""
        return self._accounts.enter(key, lease)

    async def charge(self, key: str, lease: str, num_tokens: int) -> RateLimitDecision:
        """See `Accounts.charge`."""
        return self._accounts.charge(key, lease, num_tokens)

    async def leave(self, key: str, lease: str, num_used_tokens: int) -> None:
        """See `Accounts.leave`."""
        self._accounts.leave(key, lease, num_used_tokens)

    async def debit(self, key: str, num_tokens: int) -> None:
        """See `Accounts.debit`."""
        self._accounts.debit(key, num_tokens)


@serve.deployment(name=INGRESS, max_surge_percent=100, health_check_period_s=5.0)
@serve.ingress()
class IngressServer(RoutesBuiltLate):
    """One replica of the routes.

    Args:
        settings: `ServeSettings` as JSON values; the release is an immutable version.
        engines: The engine deployment.
        accounts: The accounts deployment; None where keys have no limits.

    Raises:
        WarrenError: The release cannot be read, or the keys cannot.
    """

    def __init__(
        self, settings: Mapping[str, Any], engines: DeploymentHandle, accounts: DeploymentHandle | None
    ) -> None:
        log_as_serve_does()
        start_tracing("warren-ingress")
        parsed = ServeSettings.parse(settings)
        self._service = open_service(parsed, RemoteBackend(engines, parsed.engine == "transformers"))
        self._accounts = RemoteAccounts(accounts, parsed.limits) if accounts else OwnAccounts(parsed.limits)
        self._mirror = Mirror(self._service.metrics.registry)

    def build_routes(self) -> FastAPI:
        """Return the routes; Serve asks once, after the constructor."""
        metrics = ClusterMetrics(serve.get_replica_context().app_name)
        api = create_api(self._service, metrics.read, self._accounts, names_requests=False)
        api.add_middleware(Disconnects)
        return api


def build(args: dict[str, Any]) -> serve.Application:
    """Build the application from its `args`, the fields of `ServeSettings`.

    A release that does not exist fails here, before a replica is started for it.

    Raises:
        ConfigError: The args do not fit, or name an alias, which this application would not follow.
        ReleaseError: There is no such release.
    """
    settings = ServeSettings.parse(args)
    location = locate_release(settings.release)
    if location.name in ALIASES:
        raise ConfigError(
            f"release: {settings.release!r} is an alias, and {__name__}:build serves one version for good: name the "
            "version, or deploy warren_serve.front:build, which follows the aliases"
        )
    read_release(location)
    pinned = settings.model_copy(update={"release": location.uri})
    return assemble(pinned, cast(serve.Deployment, EngineServer))


def assemble(settings: ServeSettings, engine: serve.Deployment) -> serve.Application:
    """Put the ingress in front of an engine deployment, with the options that the settings ask for.

    Args:
        settings: Its release is an immutable version.
        engine: A deployment of `EngineServer`, or of a class with its constructor and its `answer`.
    """
    values = settings.model_dump(mode="json")
    limits = settings.limits
    accounts = cast(serve.Deployment, AccountsServer).bind(asdict(limits)) if limits.has_any else None
    counted = (accounts,) if limits.tokens_per_minute else ()
    engines = sized_engine(engine, settings).bind(values, *counted)
    return sized_ingress(cast(serve.Deployment, IngressServer), settings).bind(values, engines, accounts)


def sized_engine(
    engine: serve.Deployment, settings: ServeSettings, initial_replicas: int | None = None
) -> serve.Deployment:
    """Give an engine deployment the options that the settings ask for."""
    return engine.options(
        max_ongoing_requests=settings.requests_per_engine,
        max_queued_requests=settings.max_queued_requests,
        graceful_shutdown_timeout_s=settings.drain_timeout_s,
        graceful_shutdown_wait_loop_s=0.5,
        autoscaling_config=AutoscalingConfig(
            min_replicas=settings.min_replicas,
            initial_replicas=initial_replicas,
            max_replicas=settings.max_replicas or replicas_that_fit(settings),
            target_ongoing_requests=settings.target_ongoing_requests or settings.num_slots,
            downscale_to_zero_delay_s=settings.downscale_to_zero_delay_s,
            **_pace(settings),
        ),
        # No runtime_env here, because it would replace the application's, with the packages that a job shipped.
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
    )


def sized_ingress(ingress: serve.Deployment, settings: ServeSettings) -> serve.Deployment:
    """Give an ingress deployment the options that the settings ask for."""
    return ingress.options(
        # The ingress itself refuses excess requests with OpenAI's error object. Serve's own refusal, in plain text, is
        # left for a flood that exceeds even the refusals.
        max_ongoing_requests=settings.ingress_max_ongoing_requests + _REFUSALS_ONGOING,
        max_queued_requests=_PROXY_QUEUE * (settings.ingress_max_ongoing_requests + _REFUSALS_ONGOING),
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=RETRY_AFTER_S),
        graceful_shutdown_timeout_s=settings.drain_timeout_s,
        graceful_shutdown_wait_loop_s=0.5,
        autoscaling_config=AutoscalingConfig(
            min_replicas=settings.ingress_min_replicas,
            max_replicas=settings.ingress_max_replicas,
            target_ongoing_requests=settings.ingress_max_ongoing_requests / 4,
            **_pace(settings),
        ),
        ray_actor_options={"num_cpus": settings.ingress_num_cpus},
    )


def _pace(settings: ServeSettings) -> dict[str, Any]:
    return {
        "upscale_delay_s": settings.upscale_delay_s,
        "downscale_delay_s": settings.downscale_delay_s,
        "look_back_period_s": settings.load_window_s,
        "metrics_interval_s": min(10.0, settings.load_window_s / 2),
    }


def log_as_serve_does() -> None:
    """Send Warren's log records to the replica's own log file, or to standard error where they are to be JSON.

    Raises:
        ConfigError: The environment asks for another format.
    """
    handlers = [json_handler()] if logs_are_json() else logging.getLogger("ray.serve").handlers
    for name in ("warren", "warren_serve"):
        logger = logging.getLogger(name)
        logger.handlers = handlers
        logger.setLevel(logging.INFO)
        logger.propagate = False


def _compute_threads(settings: ServeSettings) -> int:
    """Return the whole cores of this replica; the deployment's options may override the settings."""
    assigned = ray.get_runtime_context().get_assigned_resources()
    return max(1, int(assigned.get("CPU", settings.num_cpus)))
