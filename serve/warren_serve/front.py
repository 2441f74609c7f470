"""The endpoint whose releases roll in by themselves: `import_path: warren_serve.front:build`.

    proxy → Ingress (routes, keys, checks, weights) → applications ENDPOINT-engine-VERSION
              ↕ reports, weights                        ↑ starts, deletes
            Controller (one replica) ───────────────────╯        Accounts (what each key used)

The configuration names a release's folder and no version, so it never changes when a release rolls in: ingress,
accounts and open streams stay. The engines are applications of their own, which the controller starts and deletes
(`warren_serve.engine_applications`).
"""

import asyncio
import logging
import threading
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, cast

from fastapi import FastAPI
from pydantic import Field
from ray import serve
from ray.serve.handle import DeploymentHandle

from warren.compat.ray_serve import RoutesBuiltLate
from warren.config import RolloutPolicy
from warren.errors import ConfigError
from warren.release import ALIASES, locate_release
from warren.rollout.answer_checks import Reply, SanityQuestion
from warren.rollout.state_store import RolloutFiles
from warren.storage import Location
from warren_serve.admission import OwnAccounts
from warren_serve.api import create_api
from warren_serve.app import (
    ACCOUNTS,
    INGRESS,
    AccountsServer,
    EngineServer,
    log_as_serve_does,
    sized_engine,
    sized_ingress,
)
from warren_serve.cluster_metrics import ClusterMetrics, Mirror
from warren_serve.endpoint_file import with_endpoint_file
from warren_serve.engine_applications import EngineApplications, engines_prefix
from warren_serve.metrics import RolloutMetrics
from warren_serve.proxy_errors import Disconnects
from warren_serve.remote_backend import RemoteAccounts, RemoteBackend
from warren_serve.replicas import replicas_that_fit
from warren_serve.rollout_controller import RolloutController
from warren_serve.routing import IngressReport, RoutingTable, TrafficRouter
from warren_serve.sanity_questions import ask_engine
from warren_serve.service import ChatService, load_served
from warren_serve.settings import ServeSettings
from warren_serve.tracing import start_tracing

logger = logging.getLogger(__name__)

CONTROLLER = "Controller"
_POLL_S = 0.5
_CALL_TIMEOUT_S = 5.0
_COMPLAIN_EVERY_S = 30.0
_SILENT_S = 10.0  # without a controller for so long, a new ingress replica goes by the stored state


class FrontSettings(ServeSettings):
    """The args of this application: `ServeSettings`, whose `release` is a release's folder, and the policy."""

    release: str = Field(
        min_length=1,
        description="URI of a release's folder `…/releases/NAME`, or of an alias in it; no version. "
        "`NAME` is below `WARREN_STORAGE`.",
    )
    rollout: RolloutPolicy = Field(default_factory=RolloutPolicy, description="How candidates roll in.")

    @property
    def place(self) -> tuple[Location, str]:
        """The storage's root, and the release's name.

        Raises:
            ConfigError: `release` is no release's folder.
        """
        uri = locate_release(self.release).uri
        if uri.rsplit("/", 1)[-1] in ALIASES:
            uri = uri.rsplit("/", 1)[0]
        parts = uri.rsplit("/", 2)
        if len(parts) < 3 or parts[1] != "releases":
            raise ConfigError(
                f"release: {self.release!r} must be the folder of a release, …/releases/NAME, without a version: the "
                "controller takes versions from the aliases 'stable' and 'candidate'"
            )
        return Location(parts[0]), parts[2]

    def of_engine(self, version: str) -> ServeSettings:
        """Return the settings of one version's engines."""
        root, name = self.place
        values = self.model_dump(mode="json", exclude={"rollout"})
        named = self.model_name or name
        return ServeSettings.parse({**values, "release": f"{root}/releases/{name}/{version}", "model_name": named})


@serve.deployment(name=CONTROLLER, max_ongoing_requests=10_000, health_check_period_s=5.0)
class ControllerServer:
    """The rollout controller of one endpoint, and the only process that starts and deletes its engines.

    Args:
        settings: `FrontSettings` as JSON values.
        engine: The deployment of the engines.

    Raises:
        WarrenError: The stored state cannot be read.
    """

    def __init__(self, settings: Mapping[str, Any], engine: serve.Deployment) -> None:
        log_as_serve_does()
        parsed = FrontSettings.parse(settings)
        self._settings, self._engine = parsed, engine
        self._endpoint = serve.get_replica_context().app_name
        root, name = parsed.place

        def ask(engines: DeploymentHandle, question: SanityQuestion) -> Reply:
            return ask_engine(engines, question, parsed.model_name or name, parsed.request_timeout_s)

        replicas = parsed.min_replicas, parsed.max_replicas or replicas_that_fit(parsed)
        engines = EngineApplications(self._endpoint, self._application, ask, replicas)
        owner = f"{serve.get_replica_context().replica_tag}-{uuid.uuid4().hex[:6]}"
        self._controller = RolloutController(root, name, self._endpoint, parsed.rollout, engines, owner)
        self._metrics = RolloutMetrics()
        self._mirror = Mirror(self._metrics.registry)
        threading.Thread(target=self._controller.run, name="warren-rollout", daemon=True).start()

    async def exchange(self, report: IngressReport) -> RoutingTable | None:
        """See `RolloutController.exchange`."""
        table = self._controller.exchange(report)
        self._metrics.show(self._controller.status())
        return table

    async def status(self) -> dict[str, Any]:
        """See `RolloutController.status`."""
        return self._controller.status()

    def __del__(self) -> None:
        controller = getattr(self, "_controller", None)
        if controller is not None:
            controller.close()
        mirror = getattr(self, "_mirror", None)
        if mirror is not None:
            mirror.close()

    def _application(self, version: str, num_replicas: int) -> serve.Application:
        settings = self._settings.of_engine(version)
        engine = sized_engine(self._engine, settings, num_replicas)
        counted = (serve.get_deployment_handle(ACCOUNTS, self._endpoint),) if settings.tokens_per_minute else ()
        return engine.bind(settings.model_dump(mode="json"), *counted)


@serve.deployment(name=INGRESS, max_surge_percent=100, health_check_period_s=5.0)
@serve.ingress()
class FrontIngress(RoutesBuiltLate):
    """One replica of the routes. It is ready once a release answers.

    Args:
        settings: `FrontSettings` as JSON values.
        controller: The rollout controller.
        accounts: The accounts deployment; None where keys have no limits.

    Raises:
        WarrenError: The keys cannot be read.
    """

    def __init__(
        self, settings: Mapping[str, Any], controller: DeploymentHandle, accounts: DeploymentHandle | None
    ) -> None:
        log_as_serve_does()
        start_tracing("warren-ingress")
        parsed = FrontSettings.parse(settings)
        self._controller = controller
        self._router = TrafficRouter(parsed.request_timeout_s)
        self._follower = _Follower(parsed, controller, self._router)
        self._follower.wait()
        self._service = ChatService(self._router, self._router, parsed)
        self._accounts = RemoteAccounts(accounts, parsed.limits) if accounts else OwnAccounts(parsed.limits)
        self._mirror = Mirror(self._service.metrics.registry)

    def build_routes(self) -> FastAPI:
        """Return the routes; Serve asks once, after the constructor."""
        endpoint = serve.get_replica_context().app_name
        metrics = ClusterMetrics(endpoint, engines_prefix(endpoint))
        api = create_api(self._service, metrics.read, self._accounts, names_requests=False)
        controller = self._controller

        @api.get("/rollout", tags=["health"], summary="Where the rollout of a new release stands")
        async def rollout() -> dict[str, Any]:
            async with asyncio.timeout(_CALL_TIMEOUT_S):
                status: dict[str, Any] = await controller.status.remote()
                return status

        api.add_middleware(Disconnects)
        return api

    def __del__(self) -> None:
        follower = getattr(self, "_follower", None)
        if follower is not None:
            follower.close()


class _Follower:
    """Keeps a router's weights and releases as the controller wants them, in a thread.

    While the controller is gone, the last weights stay. A new replica that has none then goes by the stored state.
    """

    def __init__(self, settings: FrontSettings, controller: DeploymentHandle, router: TrafficRouter) -> None:
        self._settings, self._controller, self._router = settings, controller, router
        self._replica = uuid.uuid4().hex
        self._endpoint = serve.get_replica_context().app_name
        self._failures: dict[str, str] = {}
        self._loading: set[str] = set()
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="warren-load")
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="warren-weights", daemon=True).start()

    def wait(self) -> None:
        """Wait until a release can answer."""
        complained_s = time.monotonic()
        while not self._router.is_alive and not self._closed.wait(0.1):
            if time.monotonic() - complained_s > _COMPLAIN_EVERY_S:
                complained_s = time.monotonic()
                logger.warning("no engine serves yet; `python jobs/rollout.py status` says why")

    def close(self) -> None:
        self._closed.set()
        self._loader.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        heard_s = time.monotonic()
        while not self._closed.wait(_POLL_S):
            try:
                table = self._exchange()
                heard_s = time.monotonic()
                if table is not None:
                    self._follow(table)
            except Exception as error:  # of many types, while the controller's replica is replaced
                logger.warning("the rollout controller does not answer, the weights stay: %r", error)
                if not self._router.table.weights and time.monotonic() - heard_s > _SILENT_S:
                    self._follow_stored()

    def _exchange(self) -> RoutingTable | None:
        router = self._router
        records, table = router.take_records(), router.table.name
        report = IngressReport(self._replica, router.loaded, dict(self._failures), records, table)
        received: RoutingTable | None = self._controller.exchange.remote(report).result(timeout_s=_CALL_TIMEOUT_S)
        return received

    def _follow(self, table: RoutingTable) -> None:
        for version, application in table.applications.items():
            if version not in self._router.loaded and version not in self._loading | self._failures.keys():
                self._loading.add(version)
                self._loader.submit(self._load, version, application)
        # A version that no longer runs may come back repaired, so its failure is forgotten.
        self._failures = {v: why for v, why in self._failures.items() if v in table.applications}
        self._router.apply(table)

    def _load(self, version: str, application: str) -> None:
        try:
            settings = self._settings.of_engine(version)
            served = load_served(settings.release, settings)
            self._router.load(
                served, RemoteBackend(serve.get_app_handle(application), settings.engine == "transformers")
            )
        except Exception as error:  # of any type: the controller undoes the release
            logger.exception("the release %s cannot be served here", version)
            self._failures[version] = str(error)
        finally:
            self._loading.discard(version)

    def _follow_stored(self) -> None:
        try:
            root, name = self._settings.place
            stable = RolloutFiles(root, name, self._endpoint).read().state.stable
            application = f"{engines_prefix(self._endpoint)}{stable}"
            # The stored state may be of a cluster that is gone; then only the controller can start engines.
            if stable and application in serve.status().applications:
                self._follow(RoutingTable({stable: 1.0}, None, {stable: application}))
        except Exception as error:  # it is tried again
            logger.warning("the stored state of the rollout cannot be followed: %r", error)


def build(args: dict[str, Any]) -> serve.Application:
    """Build the application from its `args`: the fields of `FrontSettings`, or `endpoint`, a file that has them.

    Raises:
        ConfigError: The args do not fit.
    """
    return assemble_front(FrontSettings.parse(with_endpoint_file(args)), cast(serve.Deployment, EngineServer))


def assemble_front(settings: FrontSettings, engine: serve.Deployment) -> serve.Application:
    """Put ingress and controller together, for a deployment of engines.

    Args:
        settings: The args.
        engine: A deployment of `EngineServer`, or of a class with its constructor and its `answer`.

    Raises:
        ConfigError: `release` is no release's folder.
    """
    _, name = settings.place
    settings = settings.model_copy(update={"model_name": settings.model_name or name})
    values = settings.model_dump(mode="json")
    limits = settings.limits
    accounts = cast(serve.Deployment, AccountsServer).bind(asdict(limits)) if limits.has_any else None
    controller = cast(serve.Deployment, ControllerServer).options(
        ray_actor_options={"num_cpus": settings.ingress_num_cpus},
    )
    ingress = sized_ingress(cast(serve.Deployment, FrontIngress), settings)
    return ingress.bind(values, controller.bind(values, engine), accounts)
