"""The audit closes on sound books, and finds and places each fault planted in them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest
from loyalty.orders.v1.orders_service_pb2 import ReportOrderRefundedRequest
from loyalty.points.v1 import points_service_pb2 as pb

from services.chassis.audit import Report
from services.cli.house import House
from services.points.audit import CHECKS, STREAM_CHECK, audit
from tests.conftest import NOON, OpenHouse
from tests.database import ask
from tests.points.calls import (
    a_refund,
    capture,
    kinds,
    move,
    place,
    refund,
    reverse,
    transfer,
)
from tests.support import PROGRAMME, Points, apply_programme, eventually, fresh, order

BRIEF = {
    "rule_id": "brief",
    "scope": "RULE_SCOPE_ACTIVITY",
    "unit": "UNIT_POINTS",
    "when": "activity.kind == 'brief'",
    "fixed": 9,
    "stack": "RULE_STACK_ADD",
    "expiry": {"rolling_months": 1},
}


@pytest.fixture(scope="module")
def books(data: Path, open_house: OpenHouse) -> Iterator[Points]:
    """A house with some history, of all kinds."""
    with open_house(data / "books", test_clock=NOON) as house, Points(house) as points:
        rules = [*PROGRAMME["earn_rules"], BRIEF]
        apply_programme(house, {**PROGRAMME, "earn_rules": rules, "transfers_per_day": 100})
        for number in range(5):
            member = f"member-{number}"
            for amount in (2190, 500, 12_345):
                points.earn(member, order(amount, points.now, category="coffee"))
            points.redeem(member, 30)
            points.adjust(member, 7)
        leave("member-7", points)
        live("member-5", points)
        yield points


def leave(member: str, points: Points) -> None:
    """A member whose order was refunded by line, and then whole, is erased."""
    basket = order(500, points.now)
    points.earn(member, basket)
    for name, lines in (("z", {"1": 100}), ("a", None)):  # by their names they come the other way round
        what = a_refund(basket.order_id, points.now, lines=lines)
        what.refund_id = name
        refund(points, member, what)
    request = pb.EraseMemberRequest(member_id=member, request_id=fresh("erase"))
    points.call(points.points.EraseMember, request)


def live(member: str, points: Points) -> None:
    """Everything that can happen to a member happens."""
    basket = order(20_000, points.now)
    earned = points.earn(member, basket)
    spent = points.redeem(member, 5)
    transfer(points, member, "member-6", 40)
    transfer(points, member, "member-6", 1)
    eventually(lambda: kinds(points, "member-6") == "RECEIVE RECEIVE")
    brief = pb.EarnPointsRequest(member_id=member, request_id=fresh("earn"))
    brief.activity.activity_id, brief.activity.kind = fresh("activity"), "brief"
    brief.activity.occur_time.FromDatetime(points.now)
    points.call(points.points.EarnPoints, brief)
    move(points, points.now + timedelta(days=60))
    eventually(lambda: kinds(points, member).endswith("EXPIRE"))
    capture(points, member, place(points, member, 20).hold_id, 8)
    for amount in (6, 7):
        place(points, member, amount, until=points.now + timedelta(days=30))
    refund(points, member, a_refund(basket.order_id, points.now, 1000))
    refund(points, member, a_refund(basket.order_id, points.now, lines={"1": 500}))
    reverse(points, member, spent.transaction_id, points=3)
    reverse(points, member, earned.transaction_id, growth=2)
    early = a_refund(fresh("order"), points.now, 300)
    request = ReportOrderRefundedRequest(member_id=member, request_id=fresh("report"), refund=early)
    points.call(points.orders.ReportOrderRefunded, request)
    eventually(lambda: bool(ask(points.house, "points", "SELECT FROM refunds WHERE seq IS NULL")))


def examine(house: House, *, stream: bool = False) -> Report:
    return asyncio.run(audit(house.database_url("points"), stream_url=house.nats.url if stream else None))


def test_sound_books_close(books: Points) -> None:
    report = examine(books.house, stream=True)
    assert report.clean, report.lines
    assert report.totals["members"] == 8
    ((transactions, liability),) = ask(
        books.house,
        "points",
        "SELECT (SELECT count(*) FROM transactions), (SELECT sum(available + pending + held) FROM members)",
    )
    assert (report.totals["transactions"], report.totals["liability"]) == (transactions, liability)
    assert all(seen for _, seen, _ in report.lines)  # there was something to look at, of each kind


SENT_TOO_MUCH = """UPDATE transactions SET transfers = '[["POINTS", "available", "issuer/in_transit", 101]]'
    WHERE kind = 'SEND' AND transfers @> '[[40]]'; UPDATE cap_uses SET used = 102 WHERE rule_id = '~sent'"""
FAULTS = {
    "chain": "UPDATE transactions SET contributions = '[]' WHERE member_id = 'member-1' AND seq = 2",
    "chain: a row that cannot be read": """UPDATE transactions SET contributions = '["forged"]'
        WHERE member_id = 'member-1' AND seq = 2""",
    "transfers": """UPDATE transactions SET transfers = '[["POINTS", "issuer/earned", "available", 1]]'
        WHERE member_id = 'member-1' AND seq = 2""",
    "balances": "UPDATE members SET available = available + 1 WHERE member_id = 'member-2'",
    "balances: nobody's transactions": "DELETE FROM members WHERE member_id = 'member-5'",
    "balances: the last one's": """DELETE FROM members WHERE (bucket, member_id) =
        (SELECT bucket, member_id FROM members ORDER BY bucket DESC, member_id DESC LIMIT 1)""",
    "lots": "UPDATE lots SET remaining = remaining - 1 WHERE member_id = 'member-3' AND seq = 3",
    "lots: a use is gone": "DELETE FROM lot_uses WHERE amount < 0",
    "lots: less expired": "UPDATE lots SET expired = expired - 1 WHERE expired > 0",
    "holds": "UPDATE holds SET state = 'RELEASED' WHERE amount = 6",
    "holds: it never was": "DELETE FROM holds WHERE amount = 7",
    "holds: lots are pinned no more": "UPDATE lots SET held = held - 1 WHERE held > 0",
    "holds: other lots are pinned": "UPDATE holds SET pins = '[[1, 0, 5]]' WHERE amount = 6",
    "reversals": "UPDATE transactions SET reverses_transaction_id = 'txn_0' WHERE kind = 'REVERSE'",
    "reversals: beyond what there was": """UPDATE transactions SET transfers =
        '[["POINTS", "issuer/redeemed", "available", 6]]' WHERE kind = 'REVERSE' AND transfers @> '[[3]]'""",
    "reversals: of what has none": """UPDATE transactions SET reverses_transaction_id =
        (SELECT min(transaction_id) FROM transactions WHERE kind = 'HOLD') WHERE kind = 'REVERSE'""",
    "refunds": "DELETE FROM refunds WHERE amount = 1000",
    "refunds: beyond what was paid": "UPDATE refunds SET amount = 19501 WHERE amount = 1000",
    "refunds: another transaction's": "UPDATE refunds SET seq = 1 WHERE amount = 1000",
    "refunds: none waits": "DELETE FROM refunds WHERE seq IS NULL",
    "growth": "DELETE FROM growth_days WHERE member_id = 'member-4'",
    "caps": "INSERT INTO cap_uses SELECT bucket, member_id, 'task', '2026-06-15', 20 FROM members LIMIT 1",
    "caps: sent and not counted": "UPDATE cap_uses SET used = used - 1 WHERE rule_id = '~sent'",
    "caps: sent too much": SENT_TOO_MUCH,
    "outbox": """DELETE FROM outbox WHERE position =
        (SELECT max(position) FROM outbox WHERE subject LIKE '%PointsPosted')""",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_and_placed(books: Points, fault: str) -> None:
    report = asyncio.run(_with_fault(books.house, FAULTS[fault]))
    check = CHECKS[fault.partition(":")[0]]
    found = {meaning: offenders for meaning, _, offenders in report.lines if offenders}
    assert check in found
    assert all("member-" in offender for offender in found[check])


def test_a_rewritten_chain_is_found_by_the_events_that_left(books: Points) -> None:
    """Whoever rewrites hashes consistently cannot rewrite what subscribers hold."""
    forged = "UPDATE transactions SET hash = sha256(hash) WHERE member_id = 'member-0' AND seq = 1"
    report = asyncio.run(_with_fault(books.house, forged, stream=True))
    (offenders,) = [found for meaning, _, found in report.lines if meaning == STREAM_CHECK]
    assert [offender.split(":")[0] for offender in offenders] == ["member-0 transaction 1"]


async def _with_fault(house: House, sql: str, *, stream: bool = False) -> Report:
    """Plants a fault in a copy of the database, as its superuser, and audits the copy."""
    copy = fresh("copy").replace("-", "_")
    admin = await asyncpg.connect(house.postgres.url())
    try:
        await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'points'")
        await _copied(admin, copy)
        connection = await asyncpg.connect(house.postgres.url(copy))
        await connection.execute(sql)
        await connection.close()
        return await audit(house.postgres.url(copy), stream_url=house.nats.url if stream else None)
    finally:
        await admin.execute(f"DROP DATABASE IF EXISTS {copy} WITH (FORCE)")
        await admin.close()


async def _copied(admin: asyncpg.Connection, copy: str) -> None:
    """A template must not be in use; the service connects again at any moment, so try until it fits."""
    async with asyncio.timeout(30):
        while True:
            try:
                await admin.execute(f"CREATE DATABASE {copy} TEMPLATE points STRATEGY file_copy")
            except asyncpg.ObjectInUseError:
                await admin.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'points'"
                )
            else:
                return
