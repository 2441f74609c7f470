"""Which release answers a request, by the weights that the rollout controller sets, and what became of it.

One ingress replica has one `TrafficRouter`. It knows the weights, the releases whose tokenizers are loaded here, and a
backend for each. It also measures every answer, because the controller judges a candidate by what clients see.
"""

import asyncio
import hashlib
import logging
import random
import threading
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from prometheus_client.metrics_core import Metric

from warren.rollout.traffic_analysis import AnswerRecord
from warren_serve.answer_watch import AnswerWatch
from warren_serve.auth import ANONYMOUS
from warren_serve.backend import Backend, EngineRequest, ResponseChunk
from warren_serve.errors import ApiError, unavailable
from warren_serve.service import ServedRelease

logger = logging.getLogger(__name__)

_SERVER_ERRORS, _UNAVAILABLE = 500, 503
_MAX_WAITING_RECORDS = 10_000


@dataclass(frozen=True)
class RoutingTable:
    """What the controller tells the ingress replicas.

    Attributes:
        weights: Fractions of the traffic by version; they sum to 1 unless nothing is up.
        candidate: The version that rolls in.
        applications: The Serve application of each version that runs; also those without traffic yet.
        sticky: See `RolloutPolicy.sticky`.
        name: Tells tables apart; ingress replicas report which one they follow.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    candidate: str | None = None
    applications: Mapping[str, str] = field(default_factory=dict)
    sticky: Literal["key", "session", "none"] = "key"
    name: str = ""


@dataclass(frozen=True)
class IngressReport:
    """What an ingress replica tells the controller.

    Attributes:
        replica: Its id.
        loaded: Versions whose requests it can check.
        failures: Versions that it cannot load, with the reasons.
        records: What it measured since the last report.
        table: Name of the routing table that it follows.
    """

    replica: str
    loaded: frozenset[str] = frozenset()
    failures: Mapping[str, str] = field(default_factory=dict)
    records: tuple[AnswerRecord, ...] = ()
    table: str = ""


@dataclass(frozen=True, eq=False)
class _Routes:
    """What a router knows at one moment. It is replaced as a whole, because another thread brings the news."""

    table: RoutingTable = field(default_factory=RoutingTable)
    served: Mapping[str, tuple[ServedRelease, Backend]] = field(default_factory=dict)

    @property
    def weights(self) -> dict[str, float]:
        """The weights of what is loaded here."""
        return {version: weight for version, weight in self.table.weights.items() if version in self.served}

    @property
    def heaviest(self) -> str:
        """The version with most of the traffic.

        Raises:
            ApiError: 503; there is none.
        """
        weights = self.weights
        if not weights:
            raise unavailable("No release serves yet; try again shortly.")
        return max(weights, key=lambda version: weights[version])

    def version_for(self, session: str | None, key: str) -> str:
        """Return the version for a client."""
        weights, candidate = self.weights, self.table.candidate
        if candidate is None or len(weights) < 2 or candidate not in weights:
            return self.heaviest
        others = [version for version in weights if version != candidate]
        return candidate if self._draw(session, key) < weights[candidate] else others[0]

    def _draw(self, session: str | None, key: str) -> float:
        """Return a number from 0 to 1: the same one for the same client, as long as the same candidate rolls in."""
        sticky = self.table.sticky
        client = session if sticky in ("session", "key") else None
        if not client and sticky == "key" and key != ANONYMOUS:
            client = key
        if not client:
            return random.random()
        # The candidate is part of the digest, so that it is not always the same clients who try new releases.
        digest = hashlib.sha256(f"{self.table.candidate}\0{client}".encode()).digest()
        return int.from_bytes(digest[:8]) / 2**64


class TrafficRouter:
    """Chooses a release for every request, passes it on, and measures the answer. It is a chooser and a backend.

    One thread may bring weights and releases while the event loop answers requests.

    Args:
        request_timeout_s: Time for an answer; one that is cut off then counts as failed.
    """

    def __init__(self, request_timeout_s: float) -> None:
        self._timeout_s = request_timeout_s
        self._routes = _Routes()
        self._changing = threading.Lock()
        self._records: deque[AnswerRecord] = deque(maxlen=_MAX_WAITING_RECORDS)
        self._closed = False

    @property
    def table(self) -> RoutingTable:
        """The weights in force."""
        return self._routes.table

    @property
    def loaded(self) -> frozenset[str]:
        """Versions whose requests can be checked here."""
        return frozenset(self._routes.served)

    def load(self, served: ServedRelease, backend: Backend) -> None:
        """Take requests for a version from now on, if the weights give it any."""
        with self._changing:
            routes = self._routes
            added = {**routes.served, served.release.version: (served, backend)}
            self._routes = replace(routes, served=added)

    def apply(self, table: RoutingTable) -> None:
        """Follow new weights. What no longer runs is forgotten, once something else can answer."""
        with self._changing:
            served = self._routes.served
            # Else nothing could answer: the new releases are still being loaded here.
            if any(version in served for version in table.weights):
                served = {version: one for version, one in served.items() if version in table.applications}
            self._routes = _Routes(table, served)

    def take_records(self) -> tuple[AnswerRecord, ...]:
        """Return what was measured since the last call."""
        taken = []
        while self._records:
            taken.append(self._records.popleft())
        return tuple(taken)

    @property
    def main(self) -> ServedRelease:
        """The release with most of the traffic."""
        routes = self._routes
        return routes.served[routes.heaviest][0]

    def choose(self, session: str | None, key: str) -> ServedRelease:
        """See `ReleaseChooser.choose`."""
        routes = self._routes
        return routes.served[routes.version_for(session, key)][0]

    @property
    def is_alive(self) -> bool:
        """Whether any release can answer."""
        return not self._closed and bool(self._routes.weights)

    async def ask(self, engine_request: EngineRequest) -> AsyncGenerator[ResponseChunk]:
        """See `Backend.ask`. If the chosen release is gone before its first chunk, another one is asked."""
        routes, chosen = self._routes, engine_request.version
        version = chosen if chosen is not None and chosen in routes.served else routes.heaviest
        has_begun = False
        try:
            async for chunk in self._measured(version, routes.served[version][1], engine_request):
                has_begun = True
                yield chunk
            return
        except ApiError as error:
            routes = self._routes
            others = [other for other in routes.weights if other != version]
            # Once the client has some of an answer, another release cannot go on with it.
            if has_begun or error.status != _UNAVAILABLE or not others:
                raise
            logger.warning("no engine of %s answers, asking %s: %s", version, others[0], error)
        async for chunk in self._measured(others[0], routes.served[others[0]][1], engine_request):
            yield chunk

    def metrics(self) -> Iterable[Metric]:
        """See `Backend.metrics`."""
        return ()

    def close(self) -> None:
        """Pass no more requests on."""
        self._closed = True

    async def _measured(
        self, version: str, backend: Backend, engine_request: EngineRequest
    ) -> AsyncGenerator[ResponseChunk]:
        watch = AnswerWatch(version, engine_request.request)
        chunks = backend.ask(engine_request)
        try:
            async for chunk in chunks:
                watch.saw(chunk)
                yield chunk
            self._records.append(watch.record())
        except ApiError as error:
            # A 4xx is the client's fault and says nothing about the release.
            if error.status >= _SERVER_ERRORS:
                self._records.append(watch.record(is_failed=True))
            raise
        except (GeneratorExit, asyncio.CancelledError):
            # The deadline ends an answer like a client that leaves.
            if watch.elapsed_s >= 0.95 * self._timeout_s:
                self._records.append(watch.record(is_failed=True))
            raise
        finally:
            await chunks.aclose()
