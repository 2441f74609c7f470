"""The metrics of all replicas together, by way of Ray's metrics agents.

Each replica mirrors its registry to the agent of its node, where Prometheus already scrapes Ray's own metrics; there
the names begin with `ray_warren_`. `/metrics` asks all agents, so that every ingress replica answers for all of them.
Behind a load balancer, one replica's own metrics would change identity with each scrape.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Iterable, Mapping
from functools import partial

import aiohttp
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from ray.serve.metrics import Gauge

from warren.compat.ray_core import metrics_agents
from warren.metrics import SERVE_METRICS
from warren_serve.metrics import all_families, render

logger = logging.getLogger(__name__)

_PREFIX = "ray_"
_OWN_LINES = ("ray_warren_", "# TYPE ray_warren_", "# HELP ray_warren_")
_MIRROR_EVERY_S = 5.0
_AGENT_TIMEOUT_S = 3.0
_SHARED_FOR_S = 2.0
_RAYS_LABELS = {"application", "deployment", "replica"}
_LABELS = _RAYS_LABELS | {"le"} | {label for spec in SERVE_METRICS for label in spec.labels}
_ENDINGS = {"gauge": ("",), "counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}


class Mirror:
    """Copies a registry into Ray's metrics, sample by sample, until closed.

    Every sample becomes a gauge, because Ray's counters and histograms cannot be set. Prometheus' functions need the
    names and labels (`_total`, `_bucket`, `le`), not the declared type.

    Args:
        registry: The replica's registry.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._gauges: dict[str, Gauge] = {}
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="warren-metrics", daemon=True).start()

    def close(self) -> None:
        """Stop copying."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.wait(_MIRROR_EVERY_S):
            try:
                for family in self._registry.collect():
                    for sample in family.samples:
                        self._gauge(sample.name, family, sample.labels).set(sample.value, dict(sample.labels))
            except Exception:  # metrics must never stop the service
                logger.exception("the metrics could not be mirrored to Ray")

    def _gauge(self, name: str, family: Metric, labels: Mapping[str, str]) -> Gauge:
        if name not in self._gauges:
            self._gauges[name] = Gauge(name, description=family.documentation, tag_keys=tuple(labels) or None)
        return self._gauges[name]


class ClusterMetrics:
    """The metrics of every replica of one application, on every node; up to some seconds old.

    All readers share one round of requests to the agents, and its result for some seconds, so that the cost does not
    grow with their number.

    Args:
        application: Name of the Serve application. Those of others are left out, because their keys may differ.
        engines_prefix: What the names of its engines' applications begin with, if those are applications of their own.
    """

    def __init__(self, application: str, engines_prefix: str | None = None) -> None:
        self._application, self._engines_prefix = application, engines_prefix
        self._round: asyncio.Task[bytes] | None = None
        self._begun_s = 0.0

    async def read(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        now_s = time.monotonic()
        if self._round is None or (self._round.done() and now_s - self._begun_s > _SHARED_FOR_S):
            self._begun_s = now_s
            self._round = asyncio.create_task(self._ask_agents())
        return await asyncio.shield(self._round)  # a reader that leaves must not cancel it for the others

    async def _ask_agents(self) -> bytes:
        loop = asyncio.get_running_loop()
        addresses = await loop.run_in_executor(None, metrics_agents)
        timeout = aiohttp.ClientTimeout(total=_AGENT_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            texts = await asyncio.gather(*(_agent_text(session, address) for address in addresses))
        return await loop.run_in_executor(None, partial(merged, texts, self._application, self._engines_prefix))


def merged(texts: Iterable[str], application: str, engines_prefix: str | None = None) -> bytes:
    """Merge the agents' texts on one application: Warren's names and types, and of Ray's labels only the replica's."""

    def belongs(name: str) -> bool:
        return name == application or (engines_prefix is not None and name.startswith(engines_prefix))

    families = all_families()
    owners = {f"{_PREFIX}{family.name}{end}": family for family in families for end in _ENDINGS[family.type]}
    for family in families:
        family.samples.clear()
    for text in texts:
        for mirrored in text_string_to_metric_families(_own_lines(text)):
            for sample in mirrored.samples:
                owner = owners.get(sample.name)
                if owner and belongs(sample.labels.get("application", "")):
                    labels = {name: value for name, value in sample.labels.items() if name in _LABELS}
                    owner.add_sample(sample.name.removeprefix(_PREFIX), labels, sample.value)
    return render(family for family in families if family.samples)


def _own_lines(text: str) -> str:
    """Leave out Ray's own metrics, because parsing them, most of a megabyte, would hold up every request."""
    return "".join(line for line in text.splitlines(keepends=True) if line.startswith(_OWN_LINES))


async def _agent_text(session: aiohttp.ClientSession, address: str) -> str:
    try:
        async with session.get(f"http://{address}/metrics") as answer:
            return await answer.text()
    except (TimeoutError, aiohttp.ClientError) as error:
        logger.warning("the metrics agent at %s does not answer: %r", address, error)
        return ""
