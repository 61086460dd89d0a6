"""Trouble on the wire: bad networks, messages that come twice or wrong, callers who ask for too much."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any

import grpc
from loyalty.cards.v1 import cards_service_pb2 as cards_pb
from loyalty.groups.v1 import groups_service_pb2 as groups_pb
from loyalty.orders.v1.orders_pb2 import Order, OrderPaid
from loyalty.points.v1 import points_service_pb2 as pb
from loyalty.referral.v1 import referral_service_pb2 as referral_pb

from services.chassis.gather import MAX_WAITING
from tests.chaos import cards, groups, referral
from tests.chaos.cards_books import QUOTA
from tests.chaos.journal import POLL, until
from tests.chaos.levers import CONSUMED, all_sent, broker, eventually, patiently, redeliver, sql
from tests.chaos.proxy import Mode
from tests.chaos.site import EITHER, Caller, Fault, Site, an_adjustment
from tests.support import fresh, order, read_refusal

ORDER_PAID = "loyalty.orders.v1.OrderPaid"
STALE = 2.0  # seconds that a consumer stands still, more than JetStream waits meanwhile
ACK_WAIT = 30.0  # seconds that it waits otherwise
RECENT = 200  # messages
MANY = 60  # callers at once
LAST = 7  # rewards that a budget is enough for
HOT = 500  # commands of one member at once
ITEMS = 1_000  # of a BatchPost
COME_BACK = 0.5  # seconds, as RetryInfo says to whom it can say so
LORISES = 50  # connections of callers who never come to the point
STREAMS = {  # what each service announces on
    "points": ("POINTS", "ORDERS"),
    "cards": ("CARDS",),
    "groups": ("GROUPS",),
    "referral": ("REFERRAL",),
}
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


# --- networks -----------------------------------------------------------------------------------------


async def bad_network(mode: Mode, site: Site) -> None:
    """One of the paths is bad for a while, the next one the next time."""
    paths = ("postgres", "nats", *site.house.services)
    path = paths[(site.round + list(Mode).index(mode)) % len(paths)]
    site.network.set(path, mode)
    try:
        await asyncio.sleep(site.seconds)
    finally:
        site.network.set(path, Mode.CLEAR)
        site.lift()


async def slow_lorises(site: Site) -> None:
    """Callers send their first bytes one by one, and never come to the point."""
    writers, addresses = [], site.addresses()
    try:
        for address in addresses * (LORISES // len(addresses)):
            host, port = address.rsplit(":", 1)
            with suppress(OSError):  # one that is turned away is one less
                _, writer = await asyncio.open_connection(host, int(port))
                writers.append(writer)
        for byte in PREFACE[:-1]:
            for writer in writers:
                writer.write(bytes([byte]))
            await asyncio.sleep(2 * POLL)
        async with Caller(site) as caller:
            await caller.give(fresh("patient"))
    finally:
        for writer in writers:
            writer.transport.abort()
        site.lift()


# --- messages -----------------------------------------------------------------------------------------


async def pub_acks_lost(site: Site) -> None:
    """The relay forgets that it sent its latest events: it sends them again within the dedup window."""
    await sql(site.house, _FORGET, RECENT, service=site.service)
    site.lift()
    await all_sent(site.house)


async def pub_acks_lost_for_long(site: Site) -> None:
    """The same, and the streams take them for new ones: as after the dedup window."""
    async with broker(site.house) as client:
        for name in STREAMS[site.service]:
            await patiently(partial(_repeat, client.jetstream(), name))
    await pub_acks_lost(site)


async def _repeat(stream: Any, name: str) -> None:
    state = (await stream.stream_info(name)).state
    for sequence in range(max(state.first_seq, state.last_seq - RECENT // 2), state.last_seq + 1):
        found = await stream.get_msg(name, sequence)
        kept = {k: v for k, v in (found.headers or {}).items() if not k.startswith("Nats-")}
        await stream.publish(found.subject, found.data, headers=kept)


_FORGET = """
UPDATE outbox SET sent_at = NULL, stream_seq = NULL
WHERE sent_at IS NOT NULL AND position IN (SELECT position FROM outbox ORDER BY position DESC LIMIT $1)
"""


async def acks_lost(site: Site) -> None:
    """JetStream forgets what was acknowledged, and delivers all of it again."""
    async with broker(site.house) as client:
        stream = site.random.choice(CONSUMED[site.service])
        await patiently(partial(_forget_consumer, client.jetstream(), stream, site.service))
    site.lift()


async def _forget_consumer(jetstream: Any, stream: str, consumer: str) -> None:
    await jetstream.delete_consumer(stream, consumer)


async def acks_stale(site: Site) -> None:
    """Messages are delivered again while who has them stands still; its acknowledgements come too late."""
    member, orders = fresh("stale"), [_order(site) for _ in range(RECENT)]
    await patiently(partial(redeliver, site.house, STALE / 4))
    try:
        await _publish(site, [(_paid(member, each), each.order_id) for each in orders])
        for name in site.processes:
            site.house.process(name).freeze()
        await asyncio.sleep(STALE)
    finally:
        for name in site.processes:
            site.house.process(name).thaw()
        site.lift()
    await _earned(site, member, orders)
    await patiently(partial(redeliver, site.house, ACK_WAIT))


async def messages_wild(site: Site) -> None:
    """Orders come several times, shuffled, under several ids and under none, with poison between them."""
    member, source = fresh("shuffled"), fresh("brand")
    orders = [_order(site) for _ in range(20)]
    messages = [
        (_paid(member, each), f"{each.order_id}/{n % 2}" if n < 4 else "")
        for each in orders
        for n in range(5)
    ]
    messages += [(b"\xff\xff\xff", f"poison-{n}") for n in range(3)]
    site.random.shuffle(messages)
    await _publish(site, messages, source)
    site.lift()
    await _earned(site, member, orders)
    await eventually(site.house, "SELECT count(*) = 3 FROM dead_letters WHERE source = $1", source)


def _order(site: Site) -> Order:
    return order(site.random.randint(100, 5000), _now(site))


def _now(site: Site) -> datetime:
    assert site.house.clock is not None
    return site.house.clock.now()


def _paid(member: str, what: Order) -> bytes:
    return OrderPaid(member_id=member, order=what).SerializeToString()


async def _publish(site: Site, messages: Sequence[tuple[bytes, str]], source: str = "brand") -> None:
    async def publish() -> None:
        async with broker(site.house) as client:
            for body, event_id in messages:
                headers = {"ce-id": event_id, "ce-source": source} if event_id else None
                await client.jetstream().publish(ORDER_PAID, body, headers=headers)

    await patiently(publish)


async def _earned(site: Site, member: str, orders: Sequence[Order]) -> None:
    """Waits until each order is earned, and finds nothing else."""
    query = "SELECT count(DISTINCT order_id) = $2 FROM transactions WHERE member_id = $1 AND kind = 'EARN'"
    await eventually(site.house, query, member, len(orders))
    rows = await sql(
        site.house, "SELECT order_id FROM transactions WHERE member_id = $1 AND kind = 'EARN'", member
    )
    assert sorted(row["order_id"] for row in rows) == sorted(each.order_id for each in orders)


# --- callers ------------------------------------------------------------------------------------------


async def one_request_many_times(site: Site) -> None:
    """One request_id, from many at once, with other bodies and of another member."""
    member, other, request_id = fresh("m"), fresh("m"), fresh("one")
    async with Caller(site) as caller:
        same = [an_adjustment(member, 7, request_id) for _ in range(MANY)]
        await caller.insist("AdjustPoints", same[0])
        wrong = [an_adjustment(member, 8, request_id) for _ in range(MANY)]
        theirs = an_adjustment(other, 9, request_id)
        requests = [*same, *wrong, theirs]
        site.random.shuffle(requests)
        answers = await _all(caller, "AdjustPoints", requests)
        site.lift()
        firsts = {
            a.SerializeToString() for a in answers if isinstance(a, pb.Transaction) and a.member_id == member
        }
        assert len(firsts) == 1
        refused = [read_refusal(a).reason for a in answers if isinstance(a, grpc.RpcError)]
        assert refused == ["REQUEST_ID_REUSED"] * MANY
        assert [await caller.available(each) for each in (member, other)] == [7, 9]


async def last_of_it(site: Site) -> None:
    """Many want a member's last points at once, the last uses of a benefit, the last seats, or a budget."""
    of = {"points": _last_points, "cards": _last_uses, "groups": _last_seats, "referral": _last_budget}
    await of[site.service](site)


async def _last_points(site: Site) -> None:
    member = fresh("m")
    async with Caller(site) as caller:
        await caller.give(member, 100)
        requests = [
            pb.RedeemPointsRequest(member_id=member, request_id=fresh("r"), amount=7) for _ in range(MANY)
        ]
        answers = await _all(caller, "RedeemPoints", requests)
        site.lift()
        won = sorted(a.balance.available for a in answers if isinstance(a, pb.Transaction))
        assert won == list(range(2, 100, 7))
        assert await caller.available(member) == 2


async def _last_uses(site: Site) -> None:
    member = fresh("m")
    async with Caller(site, "cards") as caller:
        await cards.buy(caller, member, _now(site))
        requests = [cards.a_redemption(member, pieces=1) for _ in range(MANY)]
        answers = await _all(caller, "RedeemBenefits", requests)
        site.lift()
        taken = [a for a in answers if isinstance(a, cards_pb.RedeemBenefitsResponse)]
        assert len(taken) == MANY  # who comes too late pays the whole price
        assert sum(use.uses for a in taken for use in a.redemptions) == QUOTA


async def _last_seats(site: Site) -> None:
    async with Caller(site, "groups") as caller:
        group_id = await groups.open_fan_group(caller, inviter_id=fresh("kol"))
        requests = [
            groups_pb.AssignMemberRequest(
                member_id=fresh("m"), request_id=fresh("r"), chosen_group_id=group_id
            )
            for _ in range(MANY)
        ]
        answers = await _all(caller, "AssignMember", requests)
        site.lift()
        refused = [read_refusal(a).reason for a in answers if isinstance(a, grpc.RpcError)]
        assert refused == ["GROUP_FULL"] * (MANY - groups.SEATS + 1)


async def _last_budget(site: Site) -> None:
    async with Caller(site, "referral") as caller:
        campaign_id = await referral.open_campaign(caller, _now(site), rewards=LAST)
        asks = {"member_id": fresh("m"), "request_id": fresh("r"), "campaign_id": campaign_id}
        invite = await caller.insist("CreateInvite", referral_pb.CreateInviteRequest(**asks))
        brought = (referral.bring(caller, campaign_id, invite.code, _now(site)) for _ in range(MANY))
        await asyncio.gather(*brought)
        site.lift()
        spent = referral_pb.GetBudgetRequest(campaign_id=campaign_id)

        async def all_reached() -> bool:
            found = await caller.insist("GetBudget", spent)
            return bool(found.waiting_count == MANY - LAST)

        await until(all_reached)
        budget = await caller.insist("GetBudget", spent)
        assert (budget.granted_minor, budget.waiting_count) == (budget.budget_minor, MANY - LAST)


async def _all(caller: Caller, method: str, requests: Sequence[Any]) -> list[Any]:
    calls = (caller.insist(method, request, turn) for turn, request in enumerate(requests))
    return list(await asyncio.gather(*calls))


async def hot_member(site: Site) -> None:
    """One member is asked everything at once."""
    member = fresh("hot")
    async with Caller(site) as caller:
        await _all(caller, "AdjustPoints", [an_adjustment(member, 1) for _ in range(HOT)])
        site.lift()
        assert await caller.available(member) == HOT


async def overload(site: Site) -> None:
    """Three times as much comes at once as may wait: what is too much is told to come back, and does."""
    members = [fresh("crowd") for _ in range(ITEMS)]
    rounds = 3 * MAX_WAITING // ITEMS + 1
    async with Caller(site) as caller:
        batches = [
            pb.BatchPostRequest(items=[pb.BatchPostItem(adjust=an_adjustment(m, 1)) for m in members])
            for _ in range(rounds)
        ]
        crowd = asyncio.gather(*(_post(caller, batch) for batch in batches))
        while not crowd.done() and not any(map(_shed, caller.refusals)):
            await caller.give(fresh("late"))
        shed = sum(await crowd)
        site.lift()
        assert shed or caller.refusals
        assert all(read_refusal(error).retry for error in caller.refusals if _shed(error))
        balances = await caller.insist("BatchGetBalances", pb.BatchGetBalancesRequest(member_ids=members))
        assert [balance.available for balance in balances.balances] == [rounds] * ITEMS


def _shed(error: grpc.aio.AioRpcError) -> bool:
    return error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def _post(caller: Caller, batch: pb.BatchPostRequest) -> int:
    """Posts all of a batch; returns how many items were shed before they were taken."""
    shed, items = 0, list(batch.items)
    while items:
        answer = await caller.insist("BatchPost", pb.BatchPostRequest(items=items))
        refused = [result.WhichOneof("result") == "error" for result in answer.results]
        shed += sum(
            result.error.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0] for result in answer.results
        )
        items = [item for item, again in zip(items, refused, strict=True) if again]
        await asyncio.sleep(COME_BACK if items else 0)
    return shed


FAULTS = [
    *(
        Fault(
            f"network: {mode.value}",
            "F3, F20" if mode is Mode.BLACK_HOLE else "F20",
            partial(bad_network, mode),
            (),
        )
        for mode in Mode
        if mode is not Mode.CLEAR
    ),
    Fault("slow lorises", "F20", slow_lorises),
    Fault("PubAcks lost", "F5", pub_acks_lost, EITHER),
    Fault("PubAcks lost beyond the window", "F5", pub_acks_lost_for_long, EITHER),
    Fault("acks lost", "F5, F8", acks_lost, EITHER),
    Fault("acks stale", "F8", acks_stale),
    Fault("messages repeated, shuffled, poisoned", "F8", messages_wild),
    Fault("one request many times", "F10", one_request_many_times),
    Fault("last points, last uses, last seats, last budget", "F11", last_of_it, EITHER),
    Fault("hot member", "F19", hot_member),
    Fault("overload", "F19", overload),
]
