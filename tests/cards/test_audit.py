"""The audit closes on sound books, and finds and places each fault planted in them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import asyncpg
import pytest
from loyalty.cards.v1 import cards_events_pb2 as epb
from loyalty.cards.v1 import cards_service_pb2 as pb
from loyalty.orders.v1.orders_pb2 import OrderRefunded as BrandRefunded
from loyalty.orders.v1.orders_pb2 import Refund

from services.cards import codes, events, store, tables
from services.cards.audit import CHECKS, audit
from services.cards.commands import (
    ActivateGift,
    ClawBack,
    ConfirmUses,
    FreezeCard,
    GiftOrder,
    GrantReward,
    HoldCaptured,
    HoldEnded,
    HoldPlaced,
    RecordNotice,
    RecordRefundPaid,
    Redeem,
    RefundCard,
    ResumeCard,
    ReturnGift,
    ReverseUses,
    SetAutoRenew,
    Settle,
)
from services.chassis import streams
from services.chassis.audit import STREAM_CHECK, Report
from services.chassis.clock import wall
from services.chassis.database import Database
from services.chassis.jobs import Jobs
from services.chassis.relay import Relay
from services.chassis.retention import OUTBOX_KEPT
from services.cli.servers import Nats, Postgres
from tests.cards.branch import Branch, by_event, make_database
from tests.cards.shop import TERMS
from tests.cards.till import NOON, basket, benefit, product
from tests.support import TIMEOUT, fresh

LENIENT = {"cooling_off_days": 7, "otherwise": "REFUND_RULE_PRO_RATA"}
COFFEE = product(
    benefit("cup", limit=1), benefit("tea"),
    code="coffee", period="P30D", price_minor=3000, points_price=300, upgrade_policy="UPGRADE_POLICY_NOW",
    refund_policy=LENIENT, freeze_policy={"shortest_days": 1, "longest_days": 9, "count": 1},
    gift_claim_days=3,
)  # fmt: skip
FEAST = product(
    code="feast", period="P30D", price_minor=9000, points_price=900, upgrade_policy="UPGRADE_POLICY_NOW",
    refund_policy=LENIENT,
)  # fmt: skip
SCARCE = product(
    code="scarce", family="rare", price_minor=5000, sales_cap={"limit": 2, "window": "SALES_WINDOW_YEAR"}
)  # fmt: skip


class Books(NamedTuple):
    """Where the books are, for their service and for a superuser, and where their events went."""

    url: str
    server: Postgres
    nats: Nats

    @property
    def name(self) -> str:
        """Of the database."""
        return urlsplit(self.url).path.removeprefix("/")


@pytest.fixture(scope="module")
def books(cards_server: Postgres, data: Path) -> Iterator[Books]:
    """A branch with some history, of all kinds."""
    with Nats.start(data / "nats") as nats:
        books = Books(make_database(cards_server), cards_server, nats)
        asyncio.run(_live(books))
        yield books


async def _live(books: Books) -> None:
    database = await Database.open(books.url, size=4, name="test")
    try:
        branch = Branch(database)
        await branch.put(COFFEE, FEAST, SCARCE)
        for part in (_use, _renew, _pay_by_points, _give_back, _give_away, _pay_wrongly, _sell_out, _reward):
            await part(branch)
        await _send(books, database)
    finally:
        await database.close()


async def _use(branch: Branch) -> None:
    """Uses that stay, lapse, are given back, and refunded."""
    await branch.buy("ann", COFFEE)
    for number in range(4):
        await branch.do(Redeem, "ann", bill=basket(f"meal-{number}", cup=1, tea=2), expected_saved_minor=1)
        if number < 3:
            await branch.do(ConfirmUses, "ann", order_id=f"meal-{number}")
        if number == 1:
            await branch.do(ReverseUses, "ann", order_id="meal-1")
    refund = Refund(order_id="meal-2", refund_id="refund-1", all=True)
    refund.refund_time.FromDatetime(NOON)
    assert await branch.tell(BrandRefunded(member_id="ann", refund=refund)) == [None]
    branch.wait(hours=1)
    await branch.do(Settle, "ann")


async def _renew(branch: Branch) -> None:
    """A renewal that is charged, after a rest."""
    card = await branch.buy("ben", COFFEE)
    await branch.do(FreezeCard, "ben", card_id=card.card_id, days=5)
    branch.wait(days=2)
    await branch.do(ResumeCard, "ben", card_id=card.card_id)
    signed = {"product_code": "", "contract_id": "contract", "sign_time": branch.clock.at}
    renewal = pb.Renewal.FromString(await branch.do(SetAutoRenew, "ben", card_id=card.card_id, **signed))
    branch.clock.at = renewal.notice_due_time.ToDatetime(NOON.tzinfo)
    told = {"notice_time": branch.clock.at, "amount_minor": 3000, "medium": "mail"}
    answer = await branch.do(RecordNotice, "ben", renewal_id=renewal.renewal_id, **told)
    renewal = pb.Renewal.FromString(answer)
    branch.clock.at = renewal.charge_time.ToDatetime(NOON.tzinfo)
    order = pb.CardOrder(member_id="ben", order_id=renewal.order_id, amount_minor=3000)
    assert (await branch.pay(order)).outcome == pb.PAYMENT_OUTCOME_APPLIED


async def _pay_by_points(branch: Branch) -> None:
    """Points that are spent, and points that are not there."""
    for member in ("cem", "dan"):
        order = await branch.order(member, COFFEE, by_points=True)
        if member == "dan":
            ended = {"order_id": order.order_id, "reason": "INSUFFICIENT_POINTS"}
            await branch.do(HoldEnded, member, **by_event(member), **ended)
            continue
        await branch.do(HoldPlaced, member, **by_event(member), order_id=order.order_id)
        captured = {"order_id": order.order_id, "capture_time": branch.clock.at}
        await branch.do(HoldCaptured, member, **by_event(member), **captured)


async def _give_back(branch: Branch) -> None:
    """An upgrade at once, and all of it given back and paid back."""
    await branch.buy("eve", COFFEE)
    branch.wait(days=10)
    card = await branch.buy("eve", FEAST, upgrade_now=True)
    await branch.do(RefundCard, "eve", card_id=card.card_id, expected_minor=9000, expected_points=0)
    for due in await branch.heard("eve", epb.RefundDue):
        await branch.do(
            RecordRefundPaid,
            "eve",
            channel=due.channel,
            payment_id=due.payment_id,
            refund_id=fresh("refund"),
            amount_minor=due.amount_minor,
            currency_code="CNY",
            refund_time=branch.clock.at,
        )


async def _give_away(branch: Branch) -> None:
    """A gift that is claimed, one that is paid back, one that is not paid."""
    bought = [
        pb.GiftCardResponse.FromString(await branch.do(GiftOrder, "fay", product_code="coffee")).order
        for _ in range(3)
    ]
    for order in bought[:2]:
        await branch.pay(order)
    code = codes.make(TERMS.gift_code_key, bought[0].order_id)
    await branch.do(ActivateGift, "gus", code_hash=codes.hash_of(code))
    branch.wait(days=3)
    await branch.do(ReturnGift, "fay", order_id=bought[1].order_id)


async def _pay_wrongly(branch: Branch) -> None:
    """Payments that pay nothing."""
    order = await branch.order("hal", COFFEE)
    await branch.pay(order, amount=2999)
    await branch.pay(order)
    await branch.pay(order)
    await branch.pay(pb.CardOrder(member_id="hal", order_id="ord_unknown", amount_minor=1))


async def _sell_out(branch: Branch) -> None:
    """One place that is taken, and one that lapsed."""
    await branch.buy("ivy", SCARCE)
    await branch.order("jan", SCARCE)
    branch.wait(hours=1)
    await branch.do(Settle, "jan")


async def _reward(branch: Branch) -> None:
    """A reward that is kept, one that is taken back, one that cannot be given."""
    for name, code in (("kept", "feast"), ("lost", "coffee"), ("refused", "nothing")):
        given = {"reward_id": name, "product_code": code}
        await branch.do(GrantReward, "kim", **by_event("kim"), **given)
    await branch.do(ClawBack, "kim", **by_event("kim"), reward_id="lost")


async def _send(books: Books, database: Database) -> None:
    """Has a relay send what was announced."""
    client = await streams.connect(books.nats.url, "test")
    relay = Relay(
        source="cards",
        database=database,
        jobs=Jobs(tables.jobs, "test"),
        client=client,
        tables=(tables.outbox, tables.stream_erasures),
        outbox=store.OUTBOX,
        owned={events.STREAM: events.SUBJECTS},
        replicas=1,
    )
    running = asyncio.create_task(relay.run())
    try:
        async with asyncio.timeout(3 * TIMEOUT), database.read() as connection:
            while await connection.fetchval("SELECT count(*) FROM outbox WHERE sent_at IS NULL"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        await client.close()


# --- sound and unsound --------------------------------------------------------------------------------


async def test_sound_books_close(books: Books) -> None:
    report = await audit(books.url, stream_url=books.nats.url)
    assert report.clean, report.lines
    assert report.totals["members"] == 11
    assert all(seen for _, seen, _ in report.lines)  # there was something to look at, of each kind


OVERLAP = """ALTER TABLE segments DROP CONSTRAINT segments_never_overlap;
    UPDATE segments SET end_time = end_time + interval '1 day' WHERE member_id = 'ben' AND number = 0"""
BEYOND = """ALTER TABLE quota_windows DROP CONSTRAINT quota_windows_within_limit;
    UPDATE quota_windows SET used = 2; UPDATE redemptions SET uses = 2 WHERE benefit_code = 'cup'
    AND status = 'CONFIRMED'"""
FAULTS = {
    "members: nobody's rows": "DELETE FROM members WHERE member_id = 'ann'",
    "members: a row that cannot be read": """ALTER TABLE orders DROP CONSTRAINT orders_status;
        UPDATE orders SET status = 'FORGED' WHERE member_id = 'dan'""",
    "periods": OVERLAP,
    "periods: of no card": "UPDATE segments SET card_id = 'card_0' WHERE member_id = 'cem'",
    "orders: a period is gone": "DELETE FROM segments WHERE member_id = 'ivy'",
    "orders: paid by nobody": """UPDATE orders SET status = 'EXPIRED'
        WHERE member_id = 'ivy'""",
    "orders: two periods": """INSERT INTO segments SELECT (jsonb_populate_record(s, jsonb_build_object(
        'number', 7, 'segment_id', 'seg_7', 'start_time', s.end_time, 'end_time', s.end_time))).*
        FROM segments s WHERE member_id = 'ivy'""",
    "orders: a period comes from nothing": "UPDATE segments SET source_id = '' WHERE member_id = 'gus'",
    "orders: a period cost something else": """UPDATE segments SET paid_minor = 2999
        WHERE member_id = 'hal'""",
    "windows": "UPDATE quota_windows SET used = 0",
    "windows: beyond the limit": BEYOND,
    "windows: of no use": "DELETE FROM redemptions WHERE status = 'CONFIRMED' AND window_key <> ''",
    "savings": "UPDATE segments SET saved_minor = saved_minor + 1 WHERE member_id = 'ann'",
    "savings: of no card": "UPDATE redemptions SET card_id = 'card_0'",
    "money": "UPDATE segments SET paid_minor = 3001 WHERE member_id = 'hal'",
    "money: a payment is gone": "DELETE FROM payments WHERE member_id = 'hal' AND applied",
    "money: a credit is forgotten": "UPDATE orders SET credit = 0 WHERE credit > 0",
    "points": "UPDATE segments SET paid_points = 299 WHERE paid_points = 300",
    "payments: another's claim": "UPDATE payment_claims SET member_id = 'ann' WHERE member_id = 'hal'",
    "payments: no claim": "DELETE FROM payment_claims WHERE member_id = 'hal'",
    "payments: told of none": "INSERT INTO payment_claims VALUES ('wechat', 'payment', 'hal', '')",
    "payments: less is due": "UPDATE payments SET due_minor = 1 WHERE member_id = 'hal' AND NOT applied",
    "payments: due of a sound card": """UPDATE payments SET due_minor = 1, reason = 'CARD_REFUNDED'
        WHERE member_id = 'hal' AND applied""",
    "payments: it paid something else": """UPDATE orders SET amount_minor = 2999 WHERE member_id = 'hal'
        AND status = 'PAID'""",
    "gifts: claimed by another": "UPDATE gifts SET claimed_by = 'hal' WHERE claimed_by = 'gus'",
    "gifts: claimed and paid back": "UPDATE gifts SET refunded = true WHERE claimed_by = 'gus'",
    "gifts: no claim": "DELETE FROM gifts WHERE NOT paid",
    "gifts: not paid": "UPDATE gifts SET paid = false WHERE refunded",
    "gifts: another's": "UPDATE gifts SET giver_id = 'hal'",
    "places": "UPDATE sales_slots SET number = 3 WHERE firm",
    "places: not firm": "UPDATE sales_slots SET firm = false",
    "places: given away": "DELETE FROM sales_slots WHERE firm",
    "places: of another product": "UPDATE sales_slots SET product_code = 'coffee'",
    "renewals": "UPDATE renewals SET notice_time = NULL WHERE outcome = 'CHARGED'",
    "renewals: too late": "UPDATE renewals SET notice_time = charge_time - interval '1 day'",
    "renewals: more than announced": "UPDATE renewals SET amount_minor = 2999 WHERE outcome = 'CHARGED'",
    "rewards": "UPDATE rewards SET segment_id = '' WHERE reward_id = 'kept'",
    "events: the last is gone": """DELETE FROM outbox WHERE entity_key = 'ann' AND position =
        (SELECT max(position) FROM outbox WHERE entity_key = 'ann')""",
    "events: the first is gone": """DELETE FROM outbox WHERE entity_key = 'ann' AND position =
        (SELECT min(position) FROM outbox WHERE entity_key = 'ann')""",
    "events: of nothing": "DELETE FROM rewards WHERE reward_id = 'refused'",
    "events: counted twice": "UPDATE cards SET version = version + 1 WHERE member_id = 'ann'",
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_planted_fault_is_found_and_placed(books: Books, fault: str) -> None:
    report = await _with_fault(books, FAULTS[fault])
    check = CHECKS[fault.partition(":")[0]]
    found = {meaning: offenders for meaning, _, offenders in report.lines if offenders}
    assert check in found, found
    whose = {offender.partition(":")[0] for offender in found[check]}
    assert whose <= {"ann", "ben", "cem", "eve", "fay", "gus", "hal", "ivy", "jan", "kim", "dan"}


async def test_events_that_are_not_in_the_stream_as_they_were_written_are_found(books: Books) -> None:
    forged = """UPDATE outbox SET body = body || '\\x7801'::bytea WHERE entity_key = 'cem'
        AND subject LIKE '%CardActivated'; UPDATE outbox SET event_id = 'evt_0' WHERE entity_key = 'ivy'
        AND subject LIKE '%CardOrdered'"""
    report = await _with_fault(books, forged, stream=True)
    (offenders,) = [found for meaning, _, found in report.lines if meaning == STREAM_CHECK]
    assert sorted(offender.partition(":")[0] for offender in offenders) == ["cem", "ivy"]


async def test_what_was_erased_is_no_fault(books: Books) -> None:
    erased = """UPDATE outbox SET erased = true, body = '' WHERE entity_key = 'ann'
        AND subject NOT LIKE '%CardOrdered'"""
    report = await _with_fault(books, erased, stream=True)
    assert report.clean, report.lines


async def test_what_is_kept_no_longer_is_no_fault(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.chassis.audit.wall", lambda: wall() + OUTBOX_KEPT)
    report = await _with_fault(books, "DELETE FROM outbox WHERE position % 2 = 0")
    assert report.clean, report.lines


async def _with_fault(books: Books, sql: str, *, stream: bool = False) -> Report:
    """Plants a fault in a copy of the database, as its superuser, and audits the copy."""
    copy = fresh("copy").replace("-", "_")
    admin = await asyncpg.connect(books.server.url())
    try:
        await admin.execute(f"CREATE DATABASE {copy} TEMPLATE {books.name} STRATEGY file_copy")
        connection = await asyncpg.connect(books.server.url(copy))
        await connection.execute(sql)
        await connection.close()
        return await audit(books.server.url(copy), stream_url=books.nats.url if stream else None)
    finally:
        await admin.execute(f"DROP DATABASE IF EXISTS {copy} WITH (FORCE)")
        await admin.close()
