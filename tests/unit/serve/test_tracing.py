"""A request's trace, from the client's to the engine's steps, through the real routes."""

import sys
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from warren.errors import ConfigError
from warren.inference import GenerationFailedError, GenerationRequest, TokenDelta
from warren_serve import tracing

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def hello(request: GenerationRequest) -> list[TokenDelta]:
    return [TokenDelta(word, (5,)) for word in "abc"] + [TokenDelta("", (6,), finish_reason="stop")]


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", lambda name: provider.get_tracer(name))
    return exporter


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in exporter.get_finished_spans()}


@pytest.mark.parametrize("stream", [False, True])
def test_a_trace_goes_from_the_client_to_the_engines_steps(
    scripted: Any, exported: InMemorySpanExporter, stream: bool
) -> None:
    endpoint, _ = scripted(hello)
    body = {"model": "tiny", "messages": [{"role": "user", "content": "a secret"}], "stream": stream}
    endpoint.request("POST", "/v1/chat/completions", json=body, headers={"traceparent": PARENT})
    spans = by_name(exported)
    request, engine = spans["POST /v1/chat/completions"], spans["engine"]
    assert request.parent is not None
    assert f"{request.parent.trace_id:032x}-{request.parent.span_id:016x}" == PARENT[3:52]
    assert engine.parent is not None
    context = request.get_span_context()
    assert context is not None
    assert engine.parent.span_id == context.span_id
    assert (request.attributes or {})["http.response.status_code"] == 200
    assert (engine.attributes or {})["warren.version"] == "v7"
    tokens: list[Any] = [(event.attributes or {})["tokens"] for event in engine.events if event.name == "step"]
    assert sum(tokens) == 4
    assert "a secret" not in "".join(span.to_json() for span in exported.get_finished_spans())


def test_failures_are_marked(scripted: Any, exported: InMemorySpanExporter) -> None:
    endpoint, _ = scripted(lambda _: [GenerationFailedError("broke")])
    endpoint.chat()
    endpoint.request("GET", "/made-up")
    spans = by_name(exported)
    assert not spans["engine"].status.is_ok
    assert not spans["POST /v1/chat/completions"].status.is_ok
    assert (spans["GET none"].attributes or {})["http.response.status_code"] == 404


def test_nothing_is_traced_by_default(scripted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(tracing.TRACES_VARIABLE, raising=False)
    tracing.start_tracing("warren-ingress")
    endpoint, _ = scripted(hello)
    assert endpoint.chat().status_code == 200
    assert tracing.current_traceparent() is None


def test_who_asks_for_traces_without_the_exporter_learns_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tracing.TRACES_VARIABLE, "1")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"warren-vlm\[traces\]"):
        tracing.start_tracing("warren-ingress")
