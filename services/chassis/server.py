"""Running a service: gRPC front, health, metrics, background work, and a stop that finishes what it took."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import signal
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import prometheus_client
import pygrpc_native.aio
import structlog
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.chassis import failpoints, logs, telemetry
from services.chassis.auth import Access, Authenticator
from services.chassis.interceptors import Interceptors, Registrar
from services.chassis.settings import ServiceSettings

MAX_MESSAGE = 4 * 1024 * 1024  # bytes
MAX_METADATA = 16 * 1024  # bytes
MAX_CONCURRENT = 8192  # calls; gather sheds long before, this is the last wall
READY_EVERY = 1.0  # seconds between looks at the database
COLLECT_AFTER = (50_000, 20, 20)  # allocations, and collections of the generation below
RESTART_PAUSE = 1.0  # seconds before background work that broke is started again
CANCEL_AGAIN = 2.0  # seconds until background work that goes on is told once more to end

OPTIONS: Sequence[tuple[str, Any]] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.max_metadata_size", MAX_METADATA),
    ("grpc.absolute_max_metadata_size", MAX_METADATA),
    ("grpc.max_concurrent_streams", 1024),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),  # the other alone is not heeded: it would be a minute
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
)

# Clients that balance by themselves look addresses up again only when a connection ends. The native front
# has no such option; neither needs it behind a proxy.
GRPCIO_OPTIONS: Sequence[tuple[str, Any]] = (
    *OPTIONS,
    # Beyond these grpcio itself sheds, with CANCELLED, which no client takes for a reason to try again.
    ("grpc.server.max_pending_requests", MAX_CONCURRENT),
    ("grpc.server.max_pending_requests_hard_limit", MAX_CONCURRENT),
    ("grpc.so_reuseport", 0),
    ("grpc.max_connection_age_ms", 300_000),
    ("grpc.max_connection_age_grace_ms", 30_000),
)

log = structlog.get_logger()

AddServicer = Callable[[Registrar], None]


class NotLoopback(ValueError):
    """Callers without a token are let in only where nobody else can reach."""


@dataclass
class Parts:
    """What a service hands over to be run."""

    domain: str
    methods: Mapping[str, Access]
    servicers: Sequence[AddServicer]
    services: Sequence[str]
    """Full names, for reflection and health."""
    background: Mapping[str, Callable[[], Coroutine[Any, Any, None]]]
    """Work that runs for ever, by name; started again if it breaks."""
    ready: Callable[[], Awaitable[bool]]
    close: Sequence[Callable[[], Awaitable[None]]] = field(default_factory=list)
    """Called last, in order."""


def run(settings: ServiceSettings, service: str, build: Callable[[], Awaitable[Parts]]) -> None:
    """Runs a service until SIGTERM or SIGINT."""
    logs.configure(settings.log_level, settings.log_format, service)
    failpoints.arm(settings.failpoint)
    if settings.otlp_endpoint:
        telemetry.start_traces(service, settings.otlp_endpoint)
    uvloop.run(serve(settings, build))


async def serve(settings: ServiceSettings, build: Callable[[], Awaitable[Parts]]) -> None:
    """Builds and serves; returns after a graceful stop."""
    authenticator = _authenticator(settings)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    parts = await build()
    front = _front(settings)
    interceptors = Interceptors(
        front,
        domain=parts.domain,
        methods=parts.methods,
        authenticator=authenticator,
        call_timeout=settings.call_timeout,
    )
    for add in parts.servicers:
        add(interceptors)
    if settings.reflection:
        names = (*parts.services, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, front)
    _bind(front, settings.grpc_address)
    health_server, state = _health_server(settings.health_address)
    metrics = _metrics_server(settings.metrics_address)
    await front.start()
    await health_server.start()
    _calm_collector()
    tasks = [asyncio.create_task(_supervise(name, work)) for name, work in parts.background.items()]
    tasks.append(asyncio.create_task(_watch(state, parts)))
    log.info("serving", grpc=settings.grpc_address, front=settings.front)
    await stopping.wait()

    log.info("stopping")
    await state.enter_graceful_shutdown()
    await front.stop(settings.stop_grace)
    await end(tasks)
    for close in parts.close:
        await close()
    await health_server.stop(0)
    metrics.shutdown()
    await end(asyncio.all_tasks() - {asyncio.current_task()})
    log.info("stopped")


def _calm_collector() -> None:
    """Everything made so far stays, and a batch makes thousands of objects that reference counts free:
    looking through all of them every 700 allocations is CPU taken from the calls."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)


def _authenticator(settings: ServiceSettings) -> Authenticator:
    if settings.jwks_file is None:
        if not settings.open_on_loopback:
            raise NotLoopback("set JWKS_FILE, or OPEN_ON_LOOPBACK for a house on this machine alone")
        host = settings.grpc_address.rsplit(":", 1)[0].strip("[]")
        if not (host == "localhost" or ipaddress.ip_address(host).is_loopback):
            raise NotLoopback(f"OPEN_ON_LOOPBACK with {settings.grpc_address}, which others can reach")
    return Authenticator(settings.jwks_file, settings.token_audience)


def _front(settings: ServiceSettings) -> grpc.aio.Server:
    if settings.front == "native":
        server: grpc.aio.Server = pygrpc_native.aio.server(options=OPTIONS)
        return server
    return grpc.aio.server(options=GRPCIO_OPTIONS, maximum_concurrent_rpcs=MAX_CONCURRENT)


def _bind(server: grpc.aio.Server, address: str) -> None:
    if not server.add_insecure_port(address):
        raise OSError(f"cannot bind {address}")


def _health_server(address: str) -> tuple[grpc.aio.Server, health.aio.HealthServicer]:
    """Health on a port of its own: the kubelet's probes speak no TLS, and load must not starve them."""
    server = grpc.aio.server(options=GRPCIO_OPTIONS)
    state = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(state, server)
    _bind(server, address)
    return server, state


def _metrics_server(address: str) -> Any:
    host, port = address.rsplit(":", 1)
    server, _thread = prometheus_client.start_http_server(int(port), addr=host.strip("[]"))
    return server


async def _watch(state: health.aio.HealthServicer, parts: Parts) -> None:
    """`live` says that this loop turns; `ready`, and each service's name, follow the database."""
    serving = health_pb2.HealthCheckResponse.SERVING
    away = health_pb2.HealthCheckResponse.NOT_SERVING
    await state.set("live", serving)
    while True:
        status = serving if await parts.ready() else away
        for name in ("ready", "", *parts.services):
            await state.set(name, status)
        await asyncio.sleep(READY_EVERY)


async def _supervise(name: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    while True:
        try:
            await work()
        except Exception:
            log.exception("background_work_broke", name=name)
        await asyncio.sleep(RESTART_PAUSE)


async def end(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancels until all have ended: a cancellation that meets an answer is lost in `asyncio.wait_for`
    (before Python 3.12), and with it one that meets a flush or a refused connection in nats-py."""
    running = set(tasks)
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=CANCEL_AGAIN)
    await asyncio.gather(*tasks, return_exceptions=True)
