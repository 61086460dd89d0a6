"""What is measured, and how: every path once on one front, with the rows that it committed checked."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig, DeliverPolicy

from services.chassis.clock import wall
from tests.bench import echo, load, messages
from tests.bench.site import PATIENCE, POLL, TRANSACTIONS, Site

TPCB, ECHO = "pgbench TPC-B, 16 clients", "bare unary echo, 256 in flight"
EARN, EARN_64, EARN_1 = (f"EarnPoints, {number} in flight" for number in (256, 64, 1))
BATCH_POST, REDEEM = "BatchPost, 100 items a call", "RedeemPoints, 256 in flight"
BALANCE = "GetBalance, 256 in flight"
RELAY, ONE_ACK = "relay, a backlog", "publishing, one message per ack"
SUBSCRIBER = "commit to subscriber, 1 in flight"
MEMORY = "memory"

IN_FLIGHT = 256
BATCHES_IN_FLIGHT = 8
MOST = 25_000  # calls a second that are prepared; who is faster ends earlier
_POINTS = "/loyalty.points.v1.PointsService/"

# The newest events, as if they had never been sent; under their old ids the stream would know them.
BACKLOG = """
    UPDATE outbox SET sent_at = NULL, stream_seq = NULL, event_id = 'evt_' || md5(event_id || now()::text)
    WHERE position IN (SELECT position FROM outbox ORDER BY position DESC LIMIT $1)"""
# A batch's events share a sent_at, the first batch only starts the watch.
RELAY_RATE = """
    WITH sent AS (SELECT sent_at FROM outbox ORDER BY position DESC LIMIT $1),
    bounds AS (SELECT min(sent_at) AS first, max(sent_at) AS last FROM sent)
    SELECT count(*) / extract(epoch FROM min(last) - min(first))::float
    FROM sent, bounds WHERE sent_at > first"""


class WrongRows(Exception):
    """A path did not commit exactly what it acknowledged: its figures mean nothing."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    rounds: int
    seconds: float  # for each path
    scale: int  # of pgbench's tables, above its number of clients
    savers: int
    backlog: int  # events


FULL = Plan(rounds=3, seconds=5.0, scale=50, savers=2_000, backlog=20_000)
QUICK = Plan(rounds=1, seconds=2.0, scale=20, savers=500, backlog=10_000)


@dataclass(frozen=True, slots=True)
class Figure:
    """One measurement; times are in milliseconds of waiting and microseconds of CPU a call."""

    rate: float | None = None
    p50: float | None = None
    p99: float | None = None
    batch: float | None = None
    service_cpu: float | None = None
    client_cpu: float | None = None
    megabytes: float | None = None


Figures = dict[str, Figure]


def prepare(site: Site, plan: Plan) -> list[str]:
    """Makes the members known and gives the savers their lots. Returns the savers."""
    savers = messages.savers(plan.savers)
    opened = messages.MEMBERS + plan.savers * messages.LOTS
    with site.serving("native"):
        _call(site, "BatchPost", messages.openings(savers), BATCHES_IN_FLIGHT, PATIENCE)
        site.relayed()
    if (found := site.sql(TRANSACTIONS)) != opened:
        raise WrongRows(f"{opened} opening posts were acknowledged, {found} are there")
    site.sql("VACUUM ANALYZE")
    return savers


def measure(site: Site, front: str, plan: Plan, savers: list[str]) -> Figures:
    """Measures every path on one front."""
    seconds = plan.seconds
    calls = int(MOST * seconds)
    tpcb_before = site.tpcb(seconds)
    found = {ECHO: _echo(site, front, seconds)}
    site.sql(BACKLOG, plan.backlog)
    with site.serving(front):
        site.relayed()
        found[RELAY] = Figure(rate=site.sql(RELAY_RATE, plan.backlog))
        found[ONE_ACK] = Figure(rate=asyncio.run(_one_message_per_ack(site, seconds / 2)))
        _call(site, "EarnPoints", messages.earns(), IN_FLIGHT, 1.0)  # warms everything up

        def path(method: str, made: Iterable[bytes], in_flight: int, share: float, items: int = 1) -> Figure:
            return _path(site, method, made, in_flight=in_flight, seconds=seconds * share, items=items)

        found[EARN] = path("EarnPoints", _some(messages.earns, calls), IN_FLIGHT, 1)
        found[REDEEM] = path("RedeemPoints", _some(lambda: messages.redeems(savers), calls), IN_FLIGHT, 1)
        made = _some(messages.batches, calls // messages.BATCH)
        found[BATCH_POST] = path("BatchPost", made, BATCHES_IN_FLIGHT, 1, messages.BATCH)
        found[BALANCE] = path("GetBalance", messages.balances(), IN_FLIGHT, 0.5, 0)
        found[EARN_64] = path("EarnPoints", _some(messages.earns, calls), 64, 1)
        found[EARN_1] = path("EarnPoints", _some(messages.earns, calls // 4), 1, 0.5)
        found[SUBSCRIBER] = asyncio.run(_commit_to_subscriber(site, seconds / 2))
        bytes_held = site.metrics().get("process_resident_memory_bytes")
        found[MEMORY] = Figure(megabytes=bytes_held and bytes_held / 2**20)
    # What all is compared with is measured on both sides of it, as the machine's mood changes meanwhile.
    found[TPCB] = Figure(rate=(tpcb_before + site.tpcb(seconds)) / 2)
    return found


def _some(made: Callable[[], Iterable[bytes]], number: int) -> list[bytes]:
    return list(itertools.islice(made(), number))


def _echo(site: Site, front: str, seconds: float) -> Figure:
    made = itertools.cycle(_some(messages.earns, 1000))
    address, token = site.echoes[front], site.token
    result = load.run(address, echo.METHOD, made, in_flight=IN_FLIGHT, seconds=seconds / 2, token=token)
    return _figure(result)


def _call(site: Site, method: str, made: Iterable[bytes], in_flight: int, seconds: float) -> load.Result:
    result = load.run(
        site.address, _POINTS + method, made, in_flight=in_flight, seconds=seconds, token=site.token
    )
    if result.refused:
        raise WrongRows(f"{result.refused} of {result.succeeded + result.refused} {method} were refused")
    return result


def _path(
    site: Site, method: str, made: Iterable[bytes], *, in_flight: int, seconds: float, items: int
) -> Figure:
    """Calls for a while; `items` is how many transactions a call must commit."""
    site.relayed()  # what was posted before must not cost this path
    before, counted = site.sql(TRANSACTIONS), site.metrics()
    result = _call(site, method, made, in_flight, seconds)
    spent = {name: value - counted.get(name, 0) for name, value in site.metrics().items()}
    grown = site.sql(TRANSACTIONS) - before
    if grown != result.succeeded * items:
        raise WrongRows(f"{method}: {result.succeeded * items} were acknowledged, {grown} committed")
    gather = '{gather="posts"}' if items else '{gather="balances"}'
    batch = spent[f"gather_batch_size_sum{gather}"] / spent[f"gather_batch_size_count{gather}"]
    return _figure(result, max(items, 1), batch, spent.get("process_cpu_seconds_total"))


def _figure(
    result: load.Result, items: int = 1, batch: float | None = None, cpu: float | None = None
) -> Figure:
    return Figure(
        rate=result.rate * items,
        p50=result.quantile(0.5) * 1e3,
        p99=result.quantile(0.99) * 1e3,
        batch=batch,
        service_cpu=cpu and cpu / result.succeeded / items * 1e6,
        client_cpu=result.client_seconds / result.succeeded / items * 1e6,
    )


async def _one_message_per_ack(site: Site, seconds: float) -> float:
    """What the relay would do without batches: messages a second, each acknowledged before the next."""
    client = await nats.connect(site.house.nats.url)
    stream, body = client.jetstream(), bytes(600)
    await stream.add_stream(name="BENCH", subjects=["bench"])
    started, number = time.perf_counter(), 0
    while time.perf_counter() < started + seconds:
        await stream.publish("bench", body)
        number += 1
    rate = number / (time.perf_counter() - started)
    await stream.delete_stream("BENCH")
    await client.close()
    return rate


async def _commit_to_subscriber(site: Site, seconds: float) -> Figure:
    """How long events take to a subscriber of the stream, from their making just before the commit."""
    waits: list[float] = []

    async def note(message: Msg) -> None:
        made = datetime.fromisoformat((message.headers or {})["ce-time"])
        waits.append((wall() - made).total_seconds())

    client: Client = await nats.connect(site.house.nats.url)
    config = ConsumerConfig(deliver_policy=DeliverPolicy.NEW)
    await client.jetstream().subscribe(
        "loyalty.points.v1.>", stream="POINTS", ordered_consumer=True, config=config, cb=note
    )
    result = await asyncio.to_thread(_call, site, "EarnPoints", messages.earns(), 1, seconds)
    async with asyncio.timeout(PATIENCE):
        while len(waits) < result.succeeded:  # noqa: ASYNC110 - the subscription calls, it sets no event
            await asyncio.sleep(POLL)
    await client.close()
    waits.sort()
    return Figure(p50=load.quantile(waits, 0.5) * 1e3, p99=load.quantile(waits, 0.99) * 1e3)
