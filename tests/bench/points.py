"""The points service: orders earned, points redeemed, balances read, events sent."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

import nats
from loyalty.points.v1 import points_service_pb2 as pb
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig, DeliverPolicy

from services.chassis.clock import wall
from tests.bench import load
from tests.bench.goals import Gain, Goal, Memory, Rate, Tail
from tests.bench.messages import CHANCE, fresh, names, order
from tests.bench.paths import (
    ECHO,
    IN_FLIGHT,
    TPCB,
    Figure,
    Figures,
    Plan,
    WrongRows,
    call,
    memory,
    path,
    some,
)
from tests.bench.site import PATIENCE, POLL, Served, Site

EARN, EARN_64, EARN_1 = (f"EarnPoints, {number} in flight" for number in (256, 64, 1))
BATCH_POST, REDEEM = "BatchPost, 100 items a call", "RedeemPoints, 256 in flight"
BALANCE = "GetBalance, 256 in flight"
RELAY, ONE_ACK = "relay, a backlog", "publishing, one message per ack"
SUBSCRIBER = "commit to subscriber, 1 in flight"
MEMORY = "memory of points"
PATHS = (
    *(EARN, EARN_64, EARN_1, BATCH_POST, REDEEM),
    *(BALANCE, RELAY, ONE_ACK, SUBSCRIBER, MEMORY),
)
GOALS: Sequence[Goal] = (
    Rate(EARN, 0.8, TPCB, ["grpcio"]),
    Rate(EARN, 0.4, ECHO, ["grpcio"]),
    Rate(EARN, 1.2, TPCB, ["native"]),
    Tail(EARN_64, 4),
    Rate(BATCH_POST, 2, TPCB),
    Rate(REDEEM, 0.8, EARN),
    Rate(BALANCE, 0.5, ECHO, ["grpcio"]),
    Gain(BALANCE, 2),
    Rate(RELAY, 2, EARN),
    Rate(RELAY, 5, ONE_ACK),
    Memory(MEMORY),
)

MEMBERS = 10_000
LOTS = 20  # of each member that redeems
LOT = 1_000  # points
GROWTH = 2_000  # that a member has at most to begin with; the highest rung takes half of it
REDEEMED = 130  # points a call: one in eight takes from two lots
BATCH = 100  # items of a BatchPost
BATCHES_IN_FLIGHT = 8
ORDERS = 200  # different ones
LINES = 5
CATEGORIES = ("COFFEE", "SOFT DRINKS", "BREAKFAST SWEETS", "FRZN BREAKFAST FOODS", "BURGERS", "FRIES")
CHEAPEST = 300  # minor units of a piece

TRANSACTIONS = "SELECT count(*) FROM transactions"
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


# --- what it is called with ---------------------------------------------------------------------------


def members() -> list[str]:
    """Who earns."""
    return names("m", MEMBERS)


def savers(plan: Plan) -> list[str]:
    """Who redeems."""
    return names("s", plan.savers)


def earns() -> Iterator[bytes]:
    """Orders of five lines, for any of the members."""
    for earn in _earns():
        yield earn.SerializeToString()


def batches() -> Iterator[bytes]:
    """The same orders, a hundred a call."""
    made = _earns()
    while True:
        items = (pb.BatchPostItem(earn=next(made)) for _ in range(BATCH))
        yield pb.BatchPostRequest(items=items).SerializeToString()


def redeems(savers: Sequence[str]) -> Iterator[bytes]:
    """A saver's points, spent bit by bit."""
    for saver in itertools.cycle(savers):
        request = pb.RedeemPointsRequest(member_id=saver, request_id=fresh("r"), amount=REDEEMED)
        yield request.SerializeToString()


def balances() -> Iterator[bytes]:
    """Questions for any member's balance."""
    asked = [pb.GetBalanceRequest(member_id=member).SerializeToString() for member in members()]
    CHANCE.shuffle(asked)
    return itertools.cycle(asked)


def _openings(savers: Sequence[str]) -> Iterator[bytes]:
    """Fixed earns that put every member somewhere on the ladder of tiers, and give each saver its lots."""
    earns = [_fixed(saver, pb.UNIT_POINTS, LOT) for saver in savers for _ in range(LOTS)]
    earns += [_fixed(member, pb.UNIT_GROWTH, CHANCE.randint(1, GROWTH)) for member in members()]
    for at in range(0, len(earns), BATCH):
        items = (pb.BatchPostItem(earn=earn) for earn in earns[at : at + BATCH])
        yield pb.BatchPostRequest(items=items).SerializeToString()


def _fixed(member: str, unit: pb.Unit.ValueType, amount: int) -> pb.EarnPointsRequest:
    fixed = pb.FixedEarn(unit=unit, amount=amount)
    return pb.EarnPointsRequest(member_id=member, request_id=fresh("o"), fixed=fixed)


def _earns() -> Iterator[pb.EarnPointsRequest]:
    everyone = members()
    orders = [order(CHANCE.choices(CATEGORIES, k=LINES), cheapest=CHEAPEST) for _ in range(ORDERS)]
    for request in itertools.cycle([pb.EarnPointsRequest(order=made) for made in orders]):
        request.member_id = CHANCE.choice(everyone)
        request.request_id = request.order.order_id = fresh("e")
        yield request


# --- what is measured ---------------------------------------------------------------------------------


def prepare(site: Site, plan: Plan) -> None:
    """Makes the members known and gives the savers their lots."""
    opened = MEMBERS + plan.savers * LOTS
    with site.serving("points", "native") as served:
        call(served, "BatchPost", _openings(savers(plan)), PATIENCE, BATCHES_IN_FLIGHT)
        served.quiet()
        if (found := served.sql(TRANSACTIONS)) != opened:
            raise WrongRows(f"{opened} opening posts were acknowledged, {found} are there")
    site.sql("points", "VACUUM ANALYZE")


def measure(site: Site, front: str, plan: Plan) -> Figures:
    """Measures every path on one front."""
    found: Figures = {}
    site.sql("points", BACKLOG, plan.backlog)
    with site.serving("points", front) as served:
        served.quiet()
        found[RELAY] = Figure(rate=served.sql(RELAY_RATE, plan.backlog))
        found[ONE_ACK] = Figure(rate=asyncio.run(_one_message_per_ack(site, plan.seconds / 2)))
        call(served, "EarnPoints", earns(), 1.0)  # warms everything up

        def post(
            method: str, made: Iterable[bytes], share: float = 1, in_flight: int = IN_FLIGHT, items: int = 1
        ) -> Figure:
            seconds = plan.seconds * share
            calls = some(made, seconds / items)
            how = {"in_flight": in_flight, "items": items}
            return path(served, method, calls, seconds, gather="posts", committed=TRANSACTIONS, **how)

        found[EARN] = post("EarnPoints", earns())
        found[REDEEM] = post("RedeemPoints", redeems(savers(plan)))
        found[BATCH_POST] = post("BatchPost", batches(), in_flight=BATCHES_IN_FLIGHT, items=BATCH)
        found[BALANCE] = path(served, "GetBalance", balances(), plan.seconds / 2, gather="balances")
        found[EARN_64] = post("EarnPoints", earns(), in_flight=64)
        found[EARN_1] = post("EarnPoints", earns(), share=0.5, in_flight=1)
        found[SUBSCRIBER] = asyncio.run(_commit_to_subscriber(served, plan.seconds / 2))
        found[MEMORY] = memory(served)
    return found


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


async def _commit_to_subscriber(served: Served, seconds: float) -> Figure:
    """How long events take to a subscriber of the stream, from their making just before the commit."""
    waits: list[float] = []

    async def note(message: Msg) -> None:
        made = datetime.fromisoformat((message.headers or {})["ce-time"])
        waits.append((wall() - made).total_seconds())

    client: Client = await nats.connect(served.house.nats.url)
    config = ConsumerConfig(deliver_policy=DeliverPolicy.NEW)
    await client.jetstream().subscribe(
        "loyalty.points.v1.>", stream="POINTS", ordered_consumer=True, config=config, cb=note
    )
    result = await asyncio.to_thread(call, served, "EarnPoints", earns(), seconds, 1)
    async with asyncio.timeout(PATIENCE):
        while len(waits) < result.succeeded:  # noqa: ASYNC110 - the subscription calls, it sets no event
            await asyncio.sleep(POLL)
    await client.close()
    waits.sort()
    return Figure(p50=load.quantile(waits, 0.5) * 1e3, p99=load.quantile(waits, 0.99) * 1e3)
