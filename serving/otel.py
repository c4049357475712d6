"""Traces by OpenTelemetry: a span per request and stage, sent by OTLP over HTTP as the OTEL_* variables say."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from pipeline.errors import ServeError
from serving.problems import Problem
from serving.traces import Traces

try:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace import Span, SpanKind, Status, StatusCode, get_current_span
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as error:
    raise ServeError(f"--traces needs OpenTelemetry ({error}): pip install 'trifocal[otel]'") from error

_FAILED = Status(StatusCode.ERROR)


class OpenTelemetry(Traces):
    """Spans as W3C trace context and the HTTP conventions want them; the global provider is left alone."""

    def __init__(self) -> None:
        named = {} if "OTEL_SERVICE_NAME" in os.environ else {SERVICE_NAME: "trifocal"}
        self._provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("trifocal.serving")
        self._propagator = TraceContextTextMapPropagator()
        # A collector that is down would otherwise fill the log with stack traces.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)

    @contextmanager
    def request(self, scope: MutableMapping[str, Any]) -> Iterator[None]:
        """One span for a POST, below the caller's where it sent `traceparent`; nothing for the rest."""
        if scope["method"] != "POST":
            yield
            return
        carrier = {
            name.decode(): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in {b"traceparent", b"tracestate"}
        }
        attributes = {
            "http.request.method": "POST",
            "url.scheme": scope.get("scheme", "http"),
            "url.path": scope["path"][:200],
            "trifocal.request_id": scope["state"]["request_id"],
        }
        with self._tracer.start_as_current_span(
            "POST", self._propagator.extract(carrier), SpanKind.SERVER, attributes, record_exception=False
        ) as span:
            scope["state"]["log"] = {"trace": f"{span.get_span_context().trace_id:032x}"}
            try:
                yield
            finally:
                _finish(span, scope)

    @contextmanager
    def stage(self, name: str, **attributes: str | float) -> Iterator[None]:
        """One span below the request's; a problem is its error."""
        with self._tracer.start_as_current_span(
            name, attributes=_named(attributes), record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                yield
            except Problem as problem:
                span.set_attribute("error.type", problem.kind)
                span.set_status(_FAILED)
                raise

    def past(self, name: str, ago_s: float, seconds: float, **attributes: str | float) -> None:
        """One span below the request's, after the fact."""
        begun = time.time_ns() - round(1e9 * ago_s)
        span = self._tracer.start_span(name, attributes=_named(attributes), start_time=begun)
        span.end(begun + round(1e9 * seconds))

    def note(self, **attributes: str | float) -> None:
        """Adds to the span that is open."""
        get_current_span().set_attributes(_named(attributes))

    def close(self) -> None:
        """Sends what is left; a collector that is down must not hold up the end."""
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(3)


def _finish(span: Span, scope: MutableMapping[str, Any]) -> None:
    """What is known of a request only at its end."""
    route, status = getattr(scope.get("route"), "path", None), scope["state"].get("status", 0)
    if route:
        span.update_name(f"POST {route}")
        span.set_attribute("http.route", route)
    if status:
        span.set_attribute("http.response.status_code", status)
    reason = scope["state"].get("reason")
    if reason:
        span.set_attribute("error.type", reason)
    if status >= 500:
        span.set_status(_FAILED)


def _named(attributes: dict[str, str | float]) -> dict[str, str | float]:
    return {f"trifocal.{name}": value for name, value in attributes.items()}
