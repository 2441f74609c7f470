"""The Ray Serve application. Deploy it declaratively with `import_path: warren_serve.app:build` and `args`.

A release rolls in as new `args`: Serve starts replicas of the new version beside the old ones
(`max_surge_percent: 100`), and one that does not load or warm up leaves the old ones serving. There is no
`user_config` and so no `reconfigure()`: an exception in one kills a healthy replica.
"""

import logging
from collections.abc import Mapping
from typing import Any, cast

import ray
from fastapi import FastAPI
from ray import serve
from ray.serve.config import AutoscalingConfig, BackpressureConfig

from warren.errors import ServiceError
from warren.release import read_release, resolve_release
from warren.storage import Location
from warren_serve.api import create_api
from warren_serve.errors import RETRY_AFTER_S
from warren_serve.service import load_service
from warren_serve.settings import ServeSettings


@serve.deployment(name="ChatServer", max_surge_percent=100, health_check_period_s=5.0)
@serve.ingress()
class ChatServer:
    """One replica: the routes, and the engine in the same process. A hop between costs 4x per token.

    Args:
        settings: `ServeSettings` as JSON values; the release is an immutable version.

    Raises:
        WarrenError: The release does not load or warm up; Serve then keeps the version that serves.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        _log_as_serve_does()
        parsed = ServeSettings.parse(settings)
        self._service = load_service(parsed, _compute_threads(parsed))

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the routes; Serve asks once, after the constructor."""
        return create_api(self._service)

    def check_health(self) -> None:
        """Raise when the engine's thread is dead, so that Serve replaces the replica.

        Raises:
            ServiceError: The engine does not run.
        """
        if not self._service.engine.is_alive:
            raise ServiceError("the engine does not run")

    def __del__(self) -> None:
        service = getattr(self, "_service", None)
        if service is not None:
            service.close()


def build(args: dict[str, Any]) -> serve.Application:
    """Build the application from its `args`, the fields of `ServeSettings`.

    An alias is resolved here, once: replicas that start later, whatever the reason, serve the same version. A
    release that does not exist fails here too, before a replica is started for it.

    Raises:
        ConfigError: The args do not fit.
        ReleaseError: There is no such release.
    """
    settings = ServeSettings.parse(args)
    pinned = settings.model_copy(update={"release": resolve_release(settings.release)})
    read_release(Location.parse(pinned.release))
    return deployment(pinned).bind(pinned.model_dump(mode="json"))


def deployment(settings: ServeSettings) -> serve.Deployment:
    """Return the deployment with the options that the settings ask for."""
    configured: serve.Deployment = cast(serve.Deployment, ChatServer).options(
        max_ongoing_requests=settings.max_ongoing_requests,
        max_queued_requests=settings.max_queued_requests,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=RETRY_AFTER_S),
        graceful_shutdown_timeout_s=settings.drain_timeout_s,
        graceful_shutdown_wait_loop_s=0.5,
        autoscaling_config=AutoscalingConfig(
            min_replicas=settings.min_replicas,
            max_replicas=settings.max_replicas,
            target_ongoing_requests=settings.target_ongoing_requests or settings.num_slots,
            upscale_delay_s=settings.upscale_delay_s,
            downscale_delay_s=settings.downscale_delay_s,
        ),
        # No runtime_env here: it would replace the application's, and with it the packages that a job shipped.
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
    )
    return configured


def _log_as_serve_does() -> None:
    """Send what Warren logs to the replica's own log file; nothing else in a replica would show it."""
    for name in ("warren", "warren_serve"):
        logger = logging.getLogger(name)
        logger.handlers = logging.getLogger("ray.serve").handlers
        logger.setLevel(logging.INFO)
        logger.propagate = False


def _compute_threads(settings: ServeSettings) -> int:
    """Return the whole cores this replica owns; the deployment's options may have overridden the settings."""
    assigned = ray.get_runtime_context().get_assigned_resources()
    return max(1, int(assigned.get("CPU", settings.num_cpus)))
