"""Traces pass through unchanged without the extra, and are continued with it."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.chassis import telemetry

CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_without_a_tracer_the_callers_trace_is_passed_on() -> None:
    with telemetry.span("a call", CALLER):
        assert telemetry.TRACEPARENT.get() == CALLER


def test_with_a_tracer_the_callers_trace_is_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr(telemetry, "_tracer", provider.get_tracer("test"))
    with telemetry.span("a call", CALLER):
        inside = telemetry.TRACEPARENT.get()
    (span,) = spans.get_finished_spans()
    assert span.parent is not None
    assert inside.split("-")[1] == CALLER.split("-")[1]
    assert inside.split("-")[2] == format(span.context.span_id, "016x")
    assert format(span.parent.span_id, "016x") == CALLER.split("-")[2]
