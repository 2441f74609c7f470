"""The engines of one endpoint: a Serve application for each version, beside the endpoint's own.

They are started and deleted by calls and not by a configuration, so that a configuration that is applied again leaves
them alone: Serve then deletes only applications that came from a configuration.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from ray import serve
from ray.serve.handle import DeploymentHandle

from warren.compat.ray_serve import reason_in
from warren.config.names import ENGINE_MARK
from warren.errors import WarrenError
from warren.rollout.answer_checks import Reply, SanityQuestion
from warren.rollout.state_machine import EngineStatus, EngineView

logger = logging.getLogger(__name__)

_STATUSES: dict[str, EngineStatus] = {
    "NOT_STARTED": "starting",
    "DEPLOYING": "starting",
    "DEPLOY_FAILED": "failed",
    "RUNNING": "ready",
    "UNHEALTHY": "unhealthy",
    "DELETING": "deleting",
}
_LONGEST_PAUSE_S = 300.0
_ASKED_AT_ONCE = 4  # few, because clients' requests wait for the same slots

BuildApplication = Callable[[str, int], serve.Application]
"""Builds the engines of a version, with so many replicas to begin with."""
AskEngine = Callable[[DeploymentHandle, SanityQuestion], Reply]


class Engines(Protocol):
    """What the controller needs of the engines; Serve's in production, a simulation in tests."""

    def views(self) -> dict[str, EngineView]:
        """Return what runs, by version."""
        ...

    def start(self, version: str, beside: str | None, fraction: float) -> None:
        """Start a version, unless it runs; returns at once.

        Args:
            beside: The version that serves.
            fraction: How much of that one's replicas the new one needs to begin with.
        """
        ...

    def delete(self, version: str) -> None:
        """Remove a version; its running answers end first. Returns at once."""
        ...

    def ask(self, version: str, questions: Sequence[SanityQuestion]) -> list[Reply]:
        """Return a version's answers."""
        ...

    def application(self, version: str) -> str:
        """Return the name of a version's application."""
        ...


def engines_prefix(endpoint: str) -> str:
    """Return what the names of an endpoint's engine applications begin with; a version follows."""
    return f"{endpoint}{ENGINE_MARK}"


class EngineApplications:
    """The engines as Serve applications called `ENDPOINT-engine-VERSION`.

    Args:
        endpoint: Name of the endpoint's own application.
        build: Builds a version's application.
        ask_engine: Asks one question.
        replicas: Fewest and most replicas.
    """

    def __init__(
        self, endpoint: str, build: BuildApplication, ask_engine: AskEngine, replicas: tuple[int, int]
    ) -> None:
        self._prefix = engines_prefix(endpoint)
        self._build, self._ask, self._replicas = build, ask_engine, replicas
        self._starting: dict[str, threading.Thread] = {}
        self._errors: dict[str, str] = {}
        self._starts: dict[str, tuple[int, float]] = {}

    def application(self, version: str) -> str:
        """See `Engines.application`."""
        return f"{self._prefix}{version}"

    def views(self) -> dict[str, EngineView]:
        """See `Engines.views`."""
        views = {version: EngineView("starting") for version, thread in self._starting.items() if thread.is_alive()}
        views |= {version: EngineView("failed", error) for version, error in self._errors.items()}
        for name, application in serve.status().applications.items():
            if name.startswith(self._prefix):
                messages = [application.message, *(one.message for one in application.deployments.values())]
                detail = reason_in("\n".join(filter(None, messages)), WarrenError.__module__) if any(messages) else ""
                views[name.removeprefix(self._prefix)] = EngineView(_STATUSES[application.status.value], detail)
        return views

    def start(self, version: str, beside: str | None, fraction: float) -> None:
        """See `Engines.start`. A version that failed before waits twice as long each time."""
        thread = self._starting.get(version)
        count, last_s = self._starts.get(version, (0, -math.inf))
        pause_s = min(_LONGEST_PAUSE_S, 2.0**count) if count else 0.0
        if (thread and thread.is_alive()) or time.monotonic() - last_s < pause_s:
            return
        self._starts[version] = count + 1, time.monotonic()
        self._errors.pop(version, None)
        least, most = self._replicas
        num_replicas = min(most, max(1, least, math.ceil(fraction * self._num_running(beside))))
        thread = threading.Thread(target=self._run, args=(version, num_replicas), name="warren-start", daemon=True)
        self._starting[version] = thread
        thread.start()

    def delete(self, version: str) -> None:
        """See `Engines.delete`."""
        if self._errors.pop(version, None) is None or self.application(version) in serve.status().applications:
            logger.info("removing the engines of %s", version)
            threading.Thread(target=self._remove, args=(version,), name="warren-delete", daemon=True).start()

    def ask(self, version: str, questions: Sequence[SanityQuestion]) -> list[Reply]:
        """See `Engines.ask`."""
        engines = serve.get_app_handle(self.application(version)).options(stream=True)
        with ThreadPoolExecutor(_ASKED_AT_ONCE, thread_name_prefix="warren-ask") as threads:
            return list(threads.map(lambda question: self._ask(engines, question), questions))

    def _run(self, version: str, num_replicas: int) -> None:
        logger.info("starting %d engine replica(s) of %s", num_replicas, version)
        try:
            # The replica's own runtime environment is passed on, with the packages that a job shipped.
            serve.run(self._build(version, num_replicas), name=self.application(version), route_prefix=None)
            self._starts.pop(version, None)
        except Exception as error:  # of any type: it is the candidate's, and never the controller's
            logger.warning("the engines of %s did not start: %s", version, error)
            if self.application(version) not in serve.status().applications:
                self._errors[version] = reason_in(str(error), WarrenError.__module__)

    def _remove(self, version: str) -> None:
        try:
            serve.delete(self.application(version))
        except Exception as error:  # it is asked for again as long as the application is there
            logger.warning("the engines of %s are not gone yet: %s", version, error)

    def _num_running(self, version: str | None) -> int:
        application = serve.status().applications.get(self.application(version)) if version else None
        states = [one.replica_states for one in application.deployments.values()] if application else []
        return sum(state.get("RUNNING", 0) for state in states)
