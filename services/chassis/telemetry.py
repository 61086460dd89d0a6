"""Metrics, as plain counters that Prometheus reads, and traces where the extra `traces` is installed.

A trace crosses gRPC, the outbox and NATS as a W3C traceparent; without the extra it is passed on unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from prometheus_client import Counter, Gauge, Histogram

# The trace context of the work at hand; it goes into the outbox and from there on with the event.
TRACEPARENT: ContextVar[str] = ContextVar("traceparent", default="")

CALLS = Counter("rpc_calls", "Calls answered, by method and status code.", ["method", "code"])
LATENCY = Histogram(
    "rpc_seconds",
    "Seconds from a call's arrival to its answer, by method.",
    ["method"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
BATCH = Histogram(
    "gather_batch_size",
    "Items that shared a transaction.",
    ["gather"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
)
WAITING = Gauge("gather_waiting", "Items that wait for a transaction.", ["gather"])
SHED = Counter("gather_shed", "Items refused because too many waited.", ["gather"])
LATE_CONNECTIONS = Counter("database_timeouts", "Times the database did not answer in time.")
OUTBOX_SENT = Counter("outbox_sent", "Events published.", ["stream"])
OUTBOX_UNSENT = Gauge("outbox_unsent", "Events that wait for the relay.")
OUTBOX_AGE = Gauge("outbox_oldest_seconds", "Age of the oldest event that waits for the relay.")
CONSUMED = Counter("consumer_messages", "Messages done with, by outcome.", ["stream", "outcome"])
CONSUMER_LAG = Gauge("consumer_pending", "Messages that wait to be consumed.", ["stream"])
JOB_RUNS = Counter("job_runs", "Runs of periodic work, by outcome.", ["job", "outcome"])
OVERDUE = Gauge("overdue", "Things that others should have ended by now, as last looked for.", ["what"])
EVALUATED = Counter("members_evaluated", "Members looked at anew since the terms that concern them changed.")
RULE_ERRORS = Counter("rule_errors", "Conditions that failed to evaluate.", ["rule"])

_tracer: Any = None  # opentelemetry's, once started


def start_traces(service: str, endpoint: str) -> None:
    """Exports spans over OTLP. Raises ModuleNotFoundError without the extra `traces`."""
    global _tracer  # noqa: PLW0603 - one process has one tracer
    from opentelemetry import trace  # noqa: PLC0415 - an extra
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, insecure=True)))
    trace.set_tracer_provider(provider)
    _tracer = trace.get_tracer("loyalty")


@contextmanager
def span(name: str, traceparent: str) -> Iterator[None]:
    """Work that belongs to a trace; what it announces continues it."""
    if _tracer is None:
        TRACEPARENT.set(traceparent)
        yield
        return
    from opentelemetry import propagate  # noqa: PLC0415 - an extra

    parent = propagate.extract({"traceparent": traceparent})
    with _tracer.start_as_current_span(name, context=parent):
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        TRACEPARENT.set(carrier.get("traceparent", ""))
        yield
