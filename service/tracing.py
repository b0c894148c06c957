"""Traces by OpenTelemetry, where its SDK is installed and its `OTEL_…` variables name a collector; else nothing.

FastAPI makes the spans of requests; a job is a span below that of the request that made it, wherever it runs.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.propagate import extract, inject
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

CONFIGURED_BY = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
FIELD = "traceparent"
tracer = trace.get_tracer("memfit")


class NoTelemetry(RuntimeError):
    """Traces are asked for, and what sends them is not installed."""

    def __init__(self) -> None:
        super().__init__("OTEL_EXPORTER_OTLP_ENDPOINT is set, but OpenTelemetry is not installed: pip install 'memfit[telemetry]'")


def set_up() -> None:
    """Send traces to the collector that the environment names, if it names one.

    Raises:
        NoTelemetry: it does, and the SDK is not installed.
    """
    if not any(os.environ.get(name) for name in CONFIGURED_BY):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError:
        raise NoTelemetry from None
    name = os.environ.get("OTEL_SERVICE_NAME", "memfit")
    provider = TracerProvider(resource=Resource.create({"service.name": name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


@contextmanager
def span(name: str, kind: SpanKind, parent: Mapping[str, str], **attributes: str | int) -> Iterator[Span]:
    """A span around the block, below the one that `parent` carries, if it carries any."""
    facts = {key.replace("_", ".", 1): value for key, value in attributes.items()}
    with tracer.start_as_current_span(name, context=extract(parent), kind=kind, attributes=facts) as current:
        yield current


def mark_failed(current: Span, reason: str) -> None:
    current.set_status(Status(StatusCode.ERROR, reason))


def current_trace() -> str | None:
    """The `traceparent` of the span that is open, for a job to go on with; None where nothing is traced."""
    carrier: dict[str, str] = {}
    inject(carrier)
    return carrier.get(FIELD)
