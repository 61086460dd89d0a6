"""Time's work is done for members whom nobody touches, once, in steps; what others leave undone is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, MutableMapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio
from loyalty.cards.v1 import cards_events_pb2 as epb
from loyalty.cards.v1 import cards_service_pb2 as pb
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from services.cards import sweeps
from services.cards.commands import GiftOrder, HoldPlaced, RecordRefundPaid, RefundCard, SetAutoRenew
from services.cards.sweeps import Sweeps
from services.chassis.clock import wall
from services.chassis.database import Database
from services.chassis.errors import INFRASTRUCTURE
from services.chassis.ids import bucket
from services.chassis.inbox import InboxKey
from services.chassis.jobs import Lease
from services.cli.servers import Postgres
from tests.cards.branch import PATIENCE, Branch, make_database
from tests.cards.till import NOON, product
from tests.support import fresh

DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)
MONTH = product(
    code="month", period="P30D", price_minor=3000, points_price=300, gift_claim_days=10,
    refund_policy={"cooling_off_days": 7},
)  # fmt: skip


@pytest_asyncio.fixture
async def database(cards_server: Postgres) -> AsyncIterator[Database]:
    """A database of the test's own: whatever is due there is its own."""
    url = await asyncio.to_thread(make_database, cards_server)
    database = await Database.open(url, size=4, name="test")
    yield database
    await database.close()


@pytest_asyncio.fixture
async def branch(database: Database) -> Branch:
    branch = Branch(database)
    await branch.put(MONTH)
    return branch


async def sweep(branch: Branch, name: str = "settle") -> bool:
    """One step of a job, as whoever holds its lease does it, also after a fault; whether more waits."""
    (job,) = [job for job in Sweeps(branch.database, branch.clock, branch.batches).jobs() if job.name == name]
    async with asyncio.timeout(PATIENCE):
        while True:
            with suppress(*INFRASTRUCTURE):
                return await job.run(Lease(name, 1))


# --- what falls due -----------------------------------------------------------------------------------


async def test_what_falls_due_of_a_card_is_told_once_though_nobody_touches_it(branch: Branch) -> None:
    member = fresh("ann")
    card = await branch.buy(member, MONTH)
    await branch.do(
        SetAutoRenew, member, card_id=card.card_id, product_code="", contract_id="c", sign_time=NOON
    )
    told = ["CardOrdered", "CardActivated"]
    for days, news in ((1, []), (19, ["RenewalDue"]), (7, ["CardExpiring"]), (3, ["CardExpired"])):
        branch.wait(days=days)
        told += news
        for _ in range(2):
            assert not await sweep(branch)
            assert await branch.announced(member) == told
        assert branch.clock.settled_at == branch.clock.at


async def test_work_is_done_in_steps_until_nothing_waits(
    branch: Branch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "SETTLE_BATCH", 5)
    members = [fresh("member") for _ in range(12)]
    await asyncio.gather(*(branch.buy(member, MONTH) for member in members))
    branch.wait(days=31)
    steps: list[bool] = []
    while not steps or steps[-1]:
        assert branch.clock.settled_at is None
        steps.append(await sweep(branch))
    assert len(steps) == 3
    assert branch.clock.settled_at == branch.clock.at
    for member in members:
        assert (await branch.announced(member))[2:] == ["CardExpired"]


async def test_two_who_sweep_while_members_call_post_each_thing_once(branch: Branch) -> None:
    other = Branch(branch.database, branch.clock)
    members = [fresh("member") for _ in range(20)]
    await asyncio.gather(*(branch.buy(member, MONTH) for member in members))
    branch.wait(days=31)
    calls = (branch.buy(member, MONTH) for member in members[::2])
    await asyncio.gather(sweep(branch), sweep(other), *calls)
    for number, member in enumerate(members):
        first, *_ = await branch.heard(member, epb.CardActivated)
        assert [e.segment_id for e in await branch.heard(member, epb.CardExpired)] == [first.segment_id]
        assert len(await branch.heard(member, epb.CardActivated)) == 2 - number % 2


async def test_a_gift_that_nobody_claims_is_paid_back_once(branch: Branch) -> None:
    giver = fresh("ann")
    answer = await branch.do(GiftOrder, giver, product_code=MONTH.code)
    await branch.pay(pb.GiftCardResponse.FromString(answer).order)
    branch.clock.at += 10 * DAY - SECOND
    await sweep(branch)
    assert await branch.heard(giver, epb.RefundDue) == []
    branch.clock.at += SECOND
    for _ in range(2):
        assert not await sweep(branch)
    (due,) = await branch.heard(giver, epb.RefundDue)
    assert (due.amount_minor, due.reason) == (3000, epb.REFUND_DUE_REASON_CARD_REFUNDED)


# --- what is overdue ----------------------------------------------------------------------------------


async def looked(branch: Branch) -> tuple[dict[str, float | None], list[MutableMapping[str, Any]]]:
    """What the metrics say of what is overdue, and what was logged, after a look."""
    with capture_logs() as logs:
        assert not await sweep(branch, "overdue")
    kinds = ("settling_orders", "refunds")
    return {what: REGISTRY.get_sample_value("overdue", {"what": what}) for what in kinds}, logs


async def test_orders_whose_points_are_neither_spent_nor_given_back_are_reported(branch: Branch) -> None:
    member = fresh("ann")
    order = await branch.order(member, MONTH, by_points=True)
    waits = await branch.order(fresh("ben"), MONTH, by_points=True)
    key = InboxKey(member, "cards", "points", fresh("event"), "POINTS", 1)
    await branch.do(HoldPlaced, member, order_id=order.order_id, event=key)
    branch.clock.at = order.pay_deadline_time.ToDatetime(NOON.tzinfo) + 2 * DAY - SECOND
    assert await looked(branch) == ({"settling_orders": 0, "refunds": 0}, [])
    branch.clock.at += SECOND
    found, logs = await looked(branch)
    assert found == {"settling_orders": 1, "refunds": 0}
    assert [(line["event"], line["count"], line["first"]) for line in logs] == [
        ("overdue", 1, [order.order_id])
    ]
    assert waits.order_id not in str(logs)


async def test_money_that_is_due_for_a_week_is_reported_until_it_is_paid_back(branch: Branch) -> None:
    member = fresh("ann")
    card = await branch.buy(member, MONTH)
    branch.wait(days=5)  # the payment is old, what is due of it is not
    await branch.do(RefundCard, member, card_id=card.card_id, expected_minor=3000, expected_points=0)
    (due,) = await branch.heard(member, epb.RefundDue)
    branch.clock.at += 7 * DAY - SECOND
    assert await looked(branch) == ({"settling_orders": 0, "refunds": 0}, [])
    branch.clock.at += SECOND
    found, logs = await looked(branch)
    assert (found["refunds"], [line["first"] for line in logs]) == (1, [[due.payment_id]])
    await branch.do(
        RecordRefundPaid,
        member,
        channel=due.channel,
        payment_id=due.payment_id,
        refund_id="refund-1",
        amount_minor=3000,
        currency_code="CNY",
        refund_time=branch.clock.at,
    )
    assert await looked(branch) == ({"settling_orders": 0, "refunds": 0}, [])


async def test_of_much_that_is_overdue_the_first_are_named_and_all_are_counted(branch: Branch) -> None:
    members = [fresh("member") for _ in range(8)]
    orders = await asyncio.gather(*(branch.order(member, MONTH) for member in members))
    await asyncio.gather(*(branch.pay(order, amount=1) for order in orders))
    branch.wait(days=7)
    found, (line,) = await looked(branch)
    assert (found["refunds"], line["count"], len(line["first"])) == (8, 8, sweeps.SHOWN)


# --- what is kept no longer ---------------------------------------------------------------------------


async def test_sent_events_go_after_thirty_days_and_receipts_after_ninety(branch: Branch) -> None:
    member, now = fresh("ann"), wall()
    for days, sent in ((29, True), (31, True), (31, False)):
        await an_event(branch, member, f"{days} {sent}", now - days * DAY, sent=sent)
    for days in (89, 91):
        await a_receipt(branch, member, str(days), now - days * DAY)
    for _ in range(2):
        assert not await sweep(branch, "retention")
    async with branch.database.read() as connection:
        events = await connection.fetch("SELECT event_id FROM outbox ORDER BY position")
        receipts = await connection.fetch("SELECT event_id FROM inbox")
    assert [row["event_id"] for row in events] == ["29 True", "31 False"]
    assert [row["event_id"] for row in receipts] == ["89"]


async def an_event(branch: Branch, member: str, name: str, made: datetime, *, sent: bool) -> None:
    statement = """INSERT INTO outbox
        (bucket, entity_key, stream, subject, event_id, body, traceparent, create_time, sent_at)
        VALUES ($1, $2, 'CARDS', 'subject', $3, '', '', $4, $5)"""
    async with branch.database.begin() as connection:
        await connection.execute(statement, bucket(member), member, name, made, made if sent else None)


async def a_receipt(branch: Branch, member: str, name: str, received: datetime) -> None:
    statement = "INSERT INTO inbox VALUES ($1, $2, 'cards', 'elsewhere', $3, 'POINTS', 1, $4)"
    async with branch.database.begin() as connection:
        await connection.execute(statement, bucket(member), member, name, received)
