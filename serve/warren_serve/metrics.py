"""Metrics in Prometheus' text format. Nothing here knows Ray; `cluster_metrics.py` mirrors them to its agents."""

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from warren.inference import EngineStats

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_ANSWER_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKEN_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)

disable_created_metrics()  # type: ignore[no-untyped-call]  # nothing reads the creation times


class RequestMetrics:
    """The metrics of the routes. Labels are routes and statuses, never a client's text."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.in_flight = Gauge("warren_requests_in_flight", "HTTP requests being answered", registry=registry)
        self.requests = Counter("warren_requests", "HTTP requests answered", ["route", "status"], registry=registry)
        self.duration_s = Histogram(
            "warren_request_seconds",
            "From the request's head to the last byte of the answer",
            ["route"],
            buckets=_ANSWER_BUCKETS_S,
            registry=registry,
        )
        self.prompt_tokens = Counter("warren_prompt_tokens", "Tokens of answered prompts", registry=registry)
        self.answer_tokens = Counter("warren_answer_tokens", "Tokens of answers", registry=registry)
        self.first_token_s = Histogram(
            "warren_time_to_first_token_seconds",
            "From the read request to the first tokens of a streamed answer",
            buckets=_ANSWER_BUCKETS_S,
            registry=registry,
        )
        self.between_tokens_s = Histogram(
            "warren_inter_token_seconds",
            "Between two tokens of a streamed answer; tokens that come together share their time",
            buckets=_TOKEN_BUCKETS_S,
            registry=registry,
        )

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
    """

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        """Yield the families."""
        stats = self._stats()
        for field, text in _ENGINE_GAUGES.items():
            yield GaugeMetricFamily(f"warren_engine_{field.removeprefix('num_')}", text, value=getattr(stats, field))
        for field, text in _ENGINE_COUNTERS.items():
            yield CounterMetricFamily(f"warren_engine_{field.removeprefix('num_')}", text, value=getattr(stats, field))


_ENGINE_GAUGES = {
    "num_slots": "Requests that can generate at the same time",
    "num_running": "Slots in use",
    "num_waiting": "Requests that wait for a slot",
    "kv_bytes": "Memory of the slots' keys and values",
    "kv_used_tokens": "Tokens held in slots",
    "kv_capacity_tokens": "Tokens that fit into the slots",
    "image_cache_bytes": "Visual features kept for repeated images",
}
_ENGINE_COUNTERS = {
    "image_cache_hits": "Images whose features were kept",
    "image_cache_misses": "Images that were encoded",
    "num_prompt_tokens": "Prompt tokens read",
    "num_generated_tokens": "Tokens generated",
    "num_finished": "Requests that ended by themselves",
    "num_cancelled": "Requests whose reader left",
    "num_failed": "Requests that failed",
}


class RolloutMetrics:
    """The metrics of the rollout controller."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._weights = Gauge(
            "warren_rollout_weight", "Fraction of the traffic by version", ["version"], registry=registry
        )
        self._phase = Gauge("warren_rollout_phase", "1 for the phase of the rollout", ["phase"], registry=registry)
        self.rollbacks = Counter("warren_rollout_rollbacks", "Candidates that were undone", registry=registry)
        self._versions: set[str] = set()
        self._last_phase = ""

    def set_weights(self, weights: Mapping[str, float]) -> None:
        """Show where traffic goes; versions without traffic go to 0."""
        self._versions |= weights.keys()
        for version in self._versions:
            self._weights.labels(version).set(weights.get(version, 0.0))

    def enter(self, phase: str) -> None:
        """Show the phase, and count each time that a candidate is undone."""
        if phase == self._last_phase:
            return
        if self._last_phase:
            self._phase.labels(self._last_phase).set(0)
        self._phase.labels(phase).set(1)
        self._last_phase = phase
        if phase == "rolling_back":
            self.rollbacks.inc()


def engine_registry(stats: Callable[[], EngineStats]) -> CollectorRegistry:
    """Return a registry of one engine's metrics."""
    registry = CollectorRegistry()
    registry.register(EngineCollector(stats))
    return registry


def all_families() -> tuple[Metric, ...]:
    """Return the metric families of all processes, for their names and types; the samples are meaningless."""
    zeros = EngineStats(**dict.fromkeys(EngineStats.__dataclass_fields__, 0))
    rollout = RolloutMetrics().registry.collect()
    return (*RequestMetrics().registry.collect(), *EngineCollector(lambda: zeros).collect(), *rollout)


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
