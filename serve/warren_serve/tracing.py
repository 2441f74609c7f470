"""Traces of requests for OpenTelemetry, from the HTTP request to the engine's steps; off unless WARREN_TRACES is set.

    POST /v1/chat/completions            the ingress: the whole exchange; goes on with the client's `traceparent`
    └── engine                           the engine replica: preparing, waiting for a slot, generating
          · step, step, …                an event for the tokens that one or several steps of the engine added

Spans have routes, statuses and counts, never a client's text. `OTEL_EXPORTER_OTLP_ENDPOINT` and the other variables of
OpenTelemetry's SDK say where they go. Without the SDK's exporter (the extra `traces`), turning them on is an error.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import propagate, trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from starlette.datastructures import Headers

from warren.errors import ConfigError

TRACES_VARIABLE = "WARREN_TRACES"
_TRACER = "warren"
_HEADER = "traceparent"


def start_tracing(process: str) -> None:
    """Export this process's spans, if the environment asks for it.

    Args:
        process: What the spans name as their service, as `warren-ingress`.

    Raises:
        ConfigError: The exporter is not installed.
    """
    if os.environ.get(TRACES_VARIABLE, "").strip() not in ("1", "true"):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise ConfigError(
            f"{TRACES_VARIABLE} is set, but the exporter of traces is not installed: pip install 'warren-vlm[traces]'"
        ) from None
    provider = TracerProvider(resource=Resource.create({"service.name": process}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


@contextmanager
def request_span(method: str, headers: Headers) -> Iterator[Span]:
    """Trace an HTTP exchange; spans that begin inside are below it."""
    parent = propagate.extract({_HEADER: headers[_HEADER]}) if _HEADER in headers else None
    with trace.get_tracer(_TRACER).start_as_current_span(method, parent, SpanKind.SERVER) as span:
        yield span


def finish_request(span: Span, method: str, route: str, status: int) -> None:
    """Name a request's span by its route, and record its status."""
    span.update_name(f"{method} {route}")
    span.set_attributes({"http.route": route, "http.response.status_code": status})
    if status >= 500:
        span.set_status(Status(StatusCode.ERROR))


def current_traceparent() -> str | None:
    """Return what identifies the present span to another process; None where nothing is traced."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier.get(_HEADER)


def start_engine_span(traceparent: str | None, version: str) -> Span:
    """Begin the span of a request in an engine's process; the caller ends it.

    It is not the present span, because an asynchronous generator may be closed in another context than it began in.

    Args:
        traceparent: `current_traceparent` of the ingress.
        version: The release's version.
    """
    parent = propagate.extract({_HEADER: traceparent} if traceparent else {})
    return trace.get_tracer(_TRACER).start_span("engine", parent, attributes={"warren.version": version})
