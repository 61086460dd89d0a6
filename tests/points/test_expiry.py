"""What falls due by itself: right to the second before any sweep, and swept up without standing in the way.

EXPIRY_MEMBERS says how many members' points end in one second; the numbers of `make test` are small.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from loyalty.cards.v1 import cards_events_pb2 as cards
from loyalty.points.v1 import points_service_pb2 as pb
from loyalty.points.v1.points_events_pb2 import HoldPlaced, HoldReleased, PointsExpiring
from loyalty.points.v1.points_service_pb2_grpc import PointsServiceStub

from services.cli.house import House
from services.points.audit import audit
from services.points.sweeps import SETTLE_BATCH
from tests.chaos.journal import owner
from tests.chaos.levers import sql
from tests.chaos.listener import Listener
from tests.conftest import NOON, OpenHouse
from tests.filling import gift, post
from tests.journeys.publisher import Publisher
from tests.points.calls import listed
from tests.support import PROGRAMME, TIMEOUT, Points, apply_programme, defects, fresh, order, refused

MEMBERS = int(os.environ.get("EXPIRY_MEMBERS", "3000"))
PATIENCE = 90.0 + MEMBERS / 100  # seconds until all is swept, on a slow machine
AMOUNT = 10
DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)
NOTICES = (30 * DAY, 7 * DAY)
LADDER = {"rolling_days": 30, "grace_days": 5, "tiers": [{"tier_id": "铁粉", "growth": 100}]}


@asynccontextmanager
async def nobody_sweeps(house: House) -> AsyncIterator[None]:
    """Holds the sweep's lease, as a replica that hangs would; begun only once no sweep is at work."""
    connection = await owner(house)
    try:
        async with asyncio.timeout(PATIENCE):
            while await connection.execute(_TAKE) != "UPDATE 1":  # noqa: ASYNC110 - another process's
                await asyncio.sleep(0.05)
        yield
    finally:
        await connection.execute("UPDATE jobs SET lease_until = now() WHERE holder = 'a test'")
        await connection.close()


_TAKE = """
UPDATE jobs SET holder = 'a test', token = token + 1, lease_until = now() + interval '1 day'
WHERE name = 'settle' AND lease_until <= now()
"""


async def swept(house: House) -> None:
    """Waits until nothing is due any more."""
    assert house.clock is not None
    due = "SELECT count(*) FROM members WHERE next_due_time <= $1"
    async with asyncio.timeout(PATIENCE):
        while (await sql(house, due, house.clock.now()))[0][0]:  # noqa: ASYNC110 - another process's
            await asyncio.sleep(0.1)


def set_clock(house: House, at: datetime) -> None:
    assert house.clock is not None
    house.clock.set(at)


def end_of(points: Points, member: str) -> datetime:
    """When the member's points end."""
    (expiring,) = points.balance(member).expiring
    return expiring.expire_time.ToDatetime(tzinfo=UTC)


# --- a year ends --------------------------------------------------------------------------------------


@pytest.fixture
def replicated(data: Path, open_house: OpenHouse) -> Iterator[House]:
    """A house in which the service runs three times."""
    with open_house(data / "replicated", test_clock=NOON) as house:
        apply_programme(house)
        replicas = [house.start_replica("points") for _ in range(2)]
        for replica in replicas:
            house.wait_ready(replica)
        yield house
        assert not defects(house)


async def test_everybodys_points_end_in_one_second_and_three_replicas_see_to_it(replicated: House) -> None:
    """One year: filled, foretold twice, right at the second, swept while posts go on, audited."""
    house = replicated
    with Points(house) as points:
        members = [f"m{number}" for number in range(MEMBERS)]
        started = time.monotonic()
        await post(house, [gift(member, AMOUNT) for member in members])
        end = end_of(points, members[0])
        took = {"filled": time.monotonic() - started}
        for ahead in NOTICES:
            took[f"told {ahead.days} days ahead"] = await foretell(house, members, end - ahead)
        took["swept"] = await let_expire(house, points, members, end)
        await told_once_each(house, members, end)
        report = await audit(house.database_url("points"), stream_url=house.nats.url)
        assert report.clean, report.lines
        assert report.totals["liability"] == 0
    print(f"{MEMBERS:,} members:", ", ".join(f"{what} {seconds:.1f} s" for what, seconds in took.items()))


async def foretell(house: House, members: list[str], at: datetime) -> float:
    """At the moment of a notice, members spend through all replicas, and so are told on the way."""
    set_clock(house, at - SECOND)
    await swept(house)
    before = await notices(house)
    started = time.monotonic()
    set_clock(house, at)
    addresses = [found["grpc"] for name, found in house.describe().items() if name.startswith("points")]
    channels = [grpc.aio.insecure_channel(address) for address in addresses]
    try:
        stubs = itertools.cycle([PointsServiceStub(channel) for channel in channels])
        spenders = members[10 :: max(1, len(members) // 150)]
        await asyncio.gather(*(spend(next(stubs), member) for member in spenders))
    finally:
        for channel in channels:
            await channel.close()
    await swept(house)
    assert await notices(house) == before + Counter(members)
    return time.monotonic() - started


async def spend(stub: Any, member: str) -> None:
    request = pb.RedeemPointsRequest(member_id=member, request_id=fresh("spend"), amount=1)
    await stub.RedeemPoints(request, timeout=TIMEOUT)


async def notices(house: House) -> Counter[str]:
    """How often each member was told."""
    rows = await sql(
        house,
        "SELECT entity_key, count(*) FROM outbox WHERE subject = $1 GROUP BY 1",
        PointsExpiring.DESCRIPTOR.full_name,
    )
    return Counter(dict(rows))


async def let_expire(house: House, points: Points, members: list[str], end: datetime) -> float:
    """First nobody sweeps, and reads and spending are right all the same; then posts go on in the sweep."""
    untouched, reader, spender, earner = members[1], members[3], members[5], members[7]
    async with nobody_sweeps(house):
        set_clock(house, end - SECOND)
        assert points.balance(reader).available == AMOUNT
        assert points.redeem(spender, 1).balance.available == AMOUNT - 1
        set_clock(house, end)
        batch = pb.BatchGetBalancesRequest(member_ids=members[:1000])
        read = points.call(points.points.BatchGetBalances, batch).balances
        assert len(read) == min(1000, len(members))
        assert not any(balance.available or balance.expiring for balance in read)
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "INSUFFICIENT_POINTS") as refusal:
            points.redeem(spender, 1)
        assert refusal.metadata == {"available": "0", "requested": "1"}
        assert await expired(house) == []  # neither reads nor refusals post
        points.earn(earner, order(100, points.now))
        assert [row["member_id"] for row in await expired(house)] == [earner]
        assert points.balance(untouched).seq == 1
    started = time.monotonic()
    seen = await posts_meanwhile(house, points)
    seconds = time.monotonic() - started
    rows = await expired(house)
    assert sorted(row["member_id"] for row in rows) == sorted(members)
    assert {row["occur_time"] for row in rows} == {end}
    batches = Counter(row["written_by"] for row in rows if row["member_id"] != earner)
    assert max(batches.values()) <= SETTLE_BATCH  # of many transactions, none takes more than a batch
    posted = [row["written_by"] for row in await written(house, seen)]
    assert len(posted) == len(seen)
    assert any(min(batches) <= number <= max(batches) for number in posted), "the sweep let nobody through"
    points.redeem(earner, 1)  # what was earned in the last second has a year of its own
    return seconds


async def posts_meanwhile(house: House, points: Points) -> list[str]:
    """Members who earn and spend again, one after the other, until the sweep is through."""
    sweeping = asyncio.create_task(swept(house))
    seen: list[str] = []
    while not sweeping.done():
        member = fresh("busy")
        await asyncio.to_thread(points.earn, member, order(100 * AMOUNT, points.now))
        spent = await asyncio.to_thread(points.redeem, member, AMOUNT)
        assert spent.balance.available == 0
        seen.append(member)
    await sweeping
    return seen


async def expired(house: House) -> list[Any]:
    """What was posted as expired, and by which database transaction."""
    return await sql(
        house,
        "SELECT member_id, occur_time, xmin::text::bigint AS written_by FROM transactions"
        " WHERE kind = 'EXPIRE'",
    )


async def written(house: House, members: list[str]) -> list[Any]:
    return await sql(
        house,
        "SELECT xmin::text::bigint AS written_by FROM transactions"
        " WHERE member_id = ANY($1) AND kind = 'REDEEM'",
        members,
    )


async def told_once_each(house: House, members: list[str], end: datetime) -> None:
    """Another team heard of each member's points twice: 30 and 7 days ahead."""
    listener = Listener(house.nats.url)
    many = 2 * len(members)
    await listener.hear(lambda: listener.counts[PointsExpiring.__name__] >= many, timeout=PATIENCE)
    told = [event for event in listener.events.values() if isinstance(event, PointsExpiring)]
    assert {event.expire_time.ToDatetime(tzinfo=UTC) for event in told} == {end}
    assert {event.amount for event in told} == {AMOUNT, AMOUNT - 1}
    heard = sorted((event.member_id, event.occur_time.ToDatetime(tzinfo=UTC)) for event in told)
    assert heard == sorted((member, end - ahead) for member in members for ahead in NOTICES)


# --- to the second, though nobody sweeps --------------------------------------------------------------


@pytest.fixture(scope="module")
def house(data: Path, open_house: OpenHouse) -> Iterator[House]:
    """A house whose clock goes on and on."""
    with open_house(data / "lasting", test_clock=NOON) as house:
        apply_programme(house, PROGRAMME | {"tier_ladder": LADDER})
        yield house
        report = asyncio.run(audit(house.database_url("points")))
        assert report.clean, report.lines
        assert not defects(house)


def kinds(points: Points, member: str) -> list[str]:
    """What is in the member's ledger, oldest first."""
    names = [pb.TransactionKind.Name(tx.kind) for tx in reversed(listed(points, member))]
    return [name.removeprefix("TRANSACTION_KIND_") for name in names]


async def test_points_are_there_until_the_last_second_and_then_gone(house: House, points: Points) -> None:
    early, late, silent = (fresh("member") for _ in range(3))
    for member in (early, late, silent):
        points.earn(member, order(100 * AMOUNT, points.now))
    end = end_of(points, late)
    async with nobody_sweeps(house):
        set_clock(house, end - SECOND)
        assert points.balance(late).available == AMOUNT
        assert points.redeem(early, AMOUNT).balance.available == 0
        set_clock(house, end)
        for member in (late, silent):
            assert points.balance(member).available == 0
        with refused(grpc.StatusCode.FAILED_PRECONDITION, "INSUFFICIENT_POINTS"):
            points.redeem(late, 1)
        assert kinds(points, late) == ["EARN"]
        set_clock(house, end + SECOND)
        points.adjust(late, 3)
        assert kinds(points, late) == ["EARN", "EXPIRE", "ADJUST"]
        assert kinds(points, silent) == ["EARN"]
    await swept(house)
    assert kinds(points, silent) == ["EARN", "EXPIRE"]
    assert kinds(points, early) == ["EARN", "REDEEM"]
    for member in (late, silent):
        gone = listed(points, member, kinds=[pb.TRANSACTION_KIND_EXPIRE])
        assert [tx.occur_time.ToDatetime(tzinfo=UTC) for tx in gone] == [end]
        assert [tx.create_time.ToDatetime(tzinfo=UTC) for tx in gone] == [end + SECOND]


async def test_a_tier_is_held_until_the_last_second_and_then_gone(house: House, points: Points) -> None:
    member = fresh("member")
    points.earn(member, order(9_900, points.now))
    set_clock(house, points.now + 29 * DAY)
    points.earn(member, order(100, points.now))
    until = points.balance(member).tier_until_time.ToDatetime(tzinfo=UTC)
    async with nobody_sweeps(house):
        set_clock(house, until - SECOND)
        assert points.balance(member).tier == "铁粉"
        set_clock(house, until)
        assert points.balance(member).tier == ""
        assert not points.balance(member).HasField("tier_until_time")
        version = points.balance(member).version
        points.adjust(member, 1)
        assert points.balance(member).version == version + 2  # the tier's end, and the adjustment
        assert points.balance(member).tier == ""


async def test_a_hold_can_be_captured_to_its_last_second_though_its_points_have_ended(
    house: House, points: Points
) -> None:
    buyers = [fresh("member") for _ in range(3)]
    for member in buyers:
        points.earn(member, order(100 * AMOUNT, points.now))
    end = end_of(points, buyers[0])
    set_clock(house, end - DAY)
    deadline = end + DAY
    in_time, too_late, asleep = (ordered(member, points.now, deadline) for member in buyers)
    async with Publisher(house.nats.url, fresh("cards")) as publisher, nobody_sweeps(house):
        await publisher.tell(in_time, too_late, asleep)
        set_clock(house, end)
        assert [points.balance(member).held for member in buyers] == [AMOUNT] * 3
        set_clock(house, deadline - SECOND)
        assert points.balance(too_late.member_id).held == AMOUNT
        await publisher.tell(settled(in_time, points.now))
        assert kinds(points, in_time.member_id) == ["EARN", "HOLD", "CAPTURE"]
        set_clock(house, deadline)
        assert [points.balance(member).held for member in buyers] == [0] * 3
        await publisher.tell(settled(too_late, points.now))
        reasons = await sql(house, "SELECT reason FROM dead_letters WHERE source = $1", publisher.source)
        assert [row["reason"] for row in reasons] == ["HOLD_EXPIRED"]
        assert [points.balance(member).available for member in buyers] == [0] * 3
    await swept(house)
    lapsed = [too_late.member_id, asleep.member_id]
    listener = Listener(house.nats.url)
    await listener.hear(lambda: all(listener.about(member, HoldReleased) for member in lapsed))
    for member in lapsed:
        assert kinds(points, member) == ["EARN", "HOLD", "RELEASE"]
        (placed,) = listener.about(member, HoldPlaced)
        (released,) = listener.about(member, HoldReleased)
        assert released.hold.hold_id == placed.hold.hold_id
        assert released.hold.state == pb.HOLD_STATE_EXPIRED
        assert released.occur_time.ToDatetime(tzinfo=UTC) == deadline


def ordered(member: str, at: datetime, deadline: datetime) -> cards.CardOrdered:
    """Another team's order of a card, to be paid by all the points that a member has."""
    made = cards.CardOrdered(
        member_id=member,
        epoch=1,
        version=1,
        card_order_id=fresh("card-order"),
        plan_id="king",
        plan_version=1,
        family="king",
        points_amount=AMOUNT,
    )
    for stamp, moment in (
        (made.occur_time, at),
        (made.pay_deadline_time, at),
        (made.hold_expire_time, deadline),
    ):
        stamp.FromDatetime(moment)
    return made


def settled(order_: cards.CardOrdered, at: datetime) -> cards.CardOrderSettled:
    made = cards.CardOrderSettled(
        member_id=order_.member_id,
        epoch=1,
        version=2,
        card_order_id=order_.card_order_id,
        outcome=cards.CARD_ORDER_OUTCOME_CAPTURE,
    )
    made.occur_time.FromDatetime(at)
    return made


async def test_a_notice_is_not_given_of_what_was_spent_or_is_gone_already(
    house: House, points: Points
) -> None:
    spent, kept, late = (fresh("member") for _ in range(3))
    for member in (spent, kept, late):
        points.earn(member, order(100 * AMOUNT, points.now))
    end = end_of(points, kept)
    points.redeem(spent, AMOUNT)
    async with nobody_sweeps(house):
        set_clock(house, end - 8 * DAY)
        points.redeem(kept, 1)  # 30 days ahead was eight and more days ago, and is told with this
        set_clock(house, end + DAY)
        points.adjust(kept, 1)
        points.adjust(late, 1)
    await swept(house)
    listener = Listener(house.nats.url)
    members = {spent, kept, late}

    def ledgers() -> Counter[str]:
        return Counter(event.member_id for event in listener.heard.values() if event.member_id in members)

    await listener.hear(lambda: ledgers() == {spent: 2, kept: 4, late: 3})
    (told,) = listener.about(kept, PointsExpiring)
    assert (told.amount, told.occur_time.ToDatetime(tzinfo=UTC)) == (AMOUNT, end - 30 * DAY)
    assert not listener.about(spent, PointsExpiring)
    assert not listener.about(late, PointsExpiring)
