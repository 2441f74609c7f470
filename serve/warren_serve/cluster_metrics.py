"""The figures of all replicas together, by way of Ray's metrics agents.

Each replica mirrors its registry to the agent of its node, where Ray's own figures are and where Prometheus looks for
them (`ray_warren_*`). `/metrics` asks all agents, so every ingress replica answers for all: behind a load balancer a
replica's own figures would change identity with each scrape.
"""

import asyncio
import logging
import threading
from collections.abc import Iterable, Mapping
from functools import partial

import aiohttp
import ray
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from ray.serve.metrics import Gauge

from warren_serve.metrics import all_families, render

logger = logging.getLogger(__name__)

_PREFIX = "ray_"
_MIRROR_EVERY_S = 5.0
_AGENT_TIMEOUT_S = 3.0
_LABELS = frozenset({"route", "status", "le", "application", "deployment", "replica"})
_ENDINGS = {"gauge": ("",), "counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}


class Mirror:
    """Copies a registry into Ray's metrics, sample by sample, until closed.

    Every sample becomes a gauge: Ray's counters and histograms cannot be set, and Prometheus' functions look at names
    and labels (`_total`, `_bucket`, `le`), not at the declared type.

    Args:
        registry: Of this replica.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._gauges: dict[str, Gauge] = {}
        self._closed = threading.Event()
        threading.Thread(target=self._run, name="warren-metrics", daemon=True).start()

    def close(self) -> None:
        """Copy no more."""
        self._closed.set()

    def _run(self) -> None:
        while not self._closed.wait(_MIRROR_EVERY_S):
            try:
                for family in self._registry.collect():
                    for sample in family.samples:
                        self._gauge(sample.name, family, sample.labels).set(sample.value, dict(sample.labels))
            except Exception:  # figures never stop the service
                logger.exception("figures could not be handed to Ray")

    def _gauge(self, name: str, family: Metric, labels: Mapping[str, str]) -> Gauge:
        if name not in self._gauges:
            self._gauges[name] = Gauge(name, description=family.documentation, tag_keys=tuple(labels) or None)
        return self._gauges[name]


async def figures_of_all_replicas() -> bytes:
    """Return the figures of every replica on every node in Prometheus' text format; seconds old."""
    nodes = await asyncio.get_running_loop().run_in_executor(None, ray.nodes)
    addresses = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in nodes if node["Alive"]]
    timeout = aiohttp.ClientTimeout(total=_AGENT_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        texts = await asyncio.gather(*(_agent_text(session, address) for address in addresses))
    return await asyncio.get_running_loop().run_in_executor(None, partial(merged, texts))


def merged(texts: Iterable[str]) -> bytes:
    """Put what agents say about Warren together: own names and types, and of Ray's labels those of the replica."""
    families = all_families()
    owners = {f"{_PREFIX}{family.name}{end}": family for family in families for end in _ENDINGS[family.type]}
    for family in families:
        family.samples.clear()
    for text in texts:
        for found in text_string_to_metric_families(text):
            for sample in found.samples:
                if owner := owners.get(sample.name):
                    labels = {name: value for name, value in sample.labels.items() if name in _LABELS}
                    owner.add_sample(sample.name.removeprefix(_PREFIX), labels, sample.value)
    return render(family for family in families if family.samples)


async def _agent_text(session: aiohttp.ClientSession, address: str) -> str:
    try:
        async with session.get(f"http://{address}/metrics") as answer:
            return await answer.text()
    except (TimeoutError, aiohttp.ClientError) as error:
        logger.warning("the metrics agent at %s does not answer: %r", address, error)
        return ""
