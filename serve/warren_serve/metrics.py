"""Metrics in Prometheus' text format. Nothing here knows Ray; `cluster_metrics.py` mirrors them to its agents."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from warren import metrics as declared
from warren.inference import EngineStats
from warren.metrics import MetricSpec

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

disable_created_metrics()  # type: ignore[no-untyped-call]  # nothing reads the creation times


class RequestMetrics:
    """The metrics of the routes. Labels are routes, statuses and error codes, never a client's text."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.in_flight = _gauge(declared.IN_FLIGHT, registry)
        self.requests = _counter(declared.REQUESTS, registry)
        self.errors = _counter(declared.REQUEST_ERRORS, registry)
        self.duration_s = _histogram(declared.REQUEST_SECONDS, registry)
        self.prompt_tokens = _counter(declared.PROMPT_TOKENS, registry)
        self.answer_tokens = _counter(declared.ANSWER_TOKENS, registry)
        self.first_token_s = _histogram(declared.FIRST_TOKEN_SECONDS, registry)
        self.between_tokens_s = _histogram(declared.INTER_TOKEN_SECONDS, registry)

    def count_tokens(self, num_prompt: int, num_answer: int) -> None:
        """Add tokens of one answer."""
        self.prompt_tokens.inc(num_prompt)
        self.answer_tokens.inc(num_answer)

    def time_tokens(self, seconds: float, num_tokens: int) -> None:
        """Observe the tokens of one chunk, which came `seconds` after the chunk before."""
        for _ in range(num_tokens):
            self.between_tokens_s.observe(seconds / num_tokens)


class EngineCollector(Collector):
    """An engine's counters, read at every scrape.

    Args:
        stats: Returns them.
        version: The release that the engine serves.
    """

    def __init__(self, stats: Callable[[], EngineStats], version: str) -> None:
        self._stats, self._version = stats, version

    def collect(self) -> Iterator[Metric]:
        """Yield the families."""
        stats = self._stats()
        for spec in declared.ENGINE_STATS:
            name = spec.name.removeprefix("warren_engine_")
            value = getattr(stats, name if hasattr(stats, name) else f"num_{name}")
            if spec.kind == "gauge":
                yield GaugeMetricFamily(spec.name, spec.meaning, value=value)
            else:
                yield CounterMetricFamily(spec.name, spec.meaning, value=value)
        spec = declared.ENGINE_RELEASE
        release = GaugeMetricFamily(spec.name, spec.meaning, labels=spec.labels)
        release.add_metric((self._version,), 1)
        yield release


class RolloutMetrics:
    """The metrics of the rollout controller."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._weight = _gauge(declared.ROLLOUT_WEIGHT, registry)
        self._phase = _gauge(declared.ROLLOUT_PHASE, registry)
        self._version = _gauge(declared.ROLLOUT_VERSION, registry)
        self._step = _gauge(declared.ROLLOUT_STEP, registry)
        self._paused = _gauge(declared.ROLLOUT_PAUSED, registry)
        self._refused = _gauge(declared.ROLLOUT_REFUSED, registry)
        self._gate = _gauge(declared.ROLLOUT_GATE, registry)
        self._superseded = _gauge(declared.ROLLOUT_SUPERSEDED, registry)
        self.rollbacks = _counter(declared.ROLLOUT_ROLLBACKS, registry)
        self._versions: set[str] = set()
        self._roles: set[tuple[str, str]] = set()
        self._last_phase = ""

    def show(self, status: Mapping[str, Any]) -> None:
        """Show what `RolloutController.status` returned. What is over goes to 0, because Ray keeps every series."""
        weights = status["weights"]
        self._versions |= weights.keys()
        for version in self._versions:
            self._weight.labels(version).set(weights.get(version, 0.0))
        roles = {(role, status[role]) for role in ("stable", "candidate") if status[role]}
        self._roles |= roles
        for role in self._roles:
            self._version.labels(*role).set(role in roles)
        self._enter(status["phase"])
        self._step.set(status["step"])
        self._paused.set(status["paused"])
        self._refused.set(len(status["refused"]))
        self._gate.set(bool(status["gate_refusal"]))
        self._superseded.set(bool(status["superseded"]))

    def _enter(self, phase: str) -> None:
        """Show the phase, and count each time that a candidate is undone."""
        if phase == self._last_phase:
            return
        if self._last_phase:
            self._phase.labels(self._last_phase).set(0)
        self._phase.labels(phase).set(1)
        self._last_phase = phase
        if phase == "rolling_back":
            self.rollbacks.inc()


def _gauge(spec: MetricSpec, registry: CollectorRegistry) -> Gauge:
    return Gauge(spec.name, spec.meaning, spec.labels, registry=registry)


def _counter(spec: MetricSpec, registry: CollectorRegistry) -> Counter:
    return Counter(spec.name, spec.meaning, spec.labels, registry=registry)


def _histogram(spec: MetricSpec, registry: CollectorRegistry) -> Histogram:
    return Histogram(spec.name, spec.meaning, spec.labels, buckets=spec.buckets, registry=registry)


def engine_registry(stats: Callable[[], EngineStats], version: str) -> CollectorRegistry:
    """Return a registry of one engine's metrics."""
    registry = CollectorRegistry()
    registry.register(EngineCollector(stats, version))
    return registry


def all_families() -> tuple[Metric, ...]:
    """Return the metric families of all processes, for their names and types; the samples are meaningless."""
    zeros = EngineStats(**dict.fromkeys(EngineStats.__dataclass_fields__, 0))
    rollout = RolloutMetrics().registry.collect()
    return (*RequestMetrics().registry.collect(), *EngineCollector(lambda: zeros, "").collect(), *rollout)


class _Families(CollectorRegistry):
    """Makes metric families a registry, because `generate_latest` takes one."""

    def __init__(self, families: Iterable[Metric]) -> None:
        super().__init__()
        self._families = tuple(families)

    def collect(self) -> Iterator[Metric]:
        yield from self._families


def render(families: Iterable[Metric]) -> bytes:
    """Return metric families in Prometheus' text format."""
    return generate_latest(_Families(families))
