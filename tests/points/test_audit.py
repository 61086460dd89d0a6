"""The audit closes on sound books, and finds and places each fault planted in them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import asyncpg
import pytest

from services.cli.house import House, running
from services.points.audit import CHECKS, STREAM_CHECK, Report, audit
from tests.conftest import NOON
from tests.support import Points, apply_programme, fresh, order

pytestmark = pytest.mark.xdist_group("audit")


@pytest.fixture(scope="module")
def books(data) -> Iterator[Points]:  # type: ignore[no-untyped-def]
    """A house with some history."""
    with running(data / "books", test_clock=NOON) as house:
        apply_programme(house)
        with Points(house) as points:
            for number in range(5):
                member = f"member-{number}"
                for amount in (2190, 500, 12_345):
                    points.earn(member, order(amount, points.now, category="coffee"))
                points.redeem(member, 30)
                points.adjust(member, 7)
            yield points


def examine(house: House, *, stream: bool = False) -> Report:
    return asyncio.run(audit(house.database_url("points"), stream_url=house.nats.url if stream else None))


def test_sound_books_close(books: Points) -> None:
    report = examine(books.house, stream=True)
    assert report.clean, report.lines
    assert report.totals["members"] == 5
    assert report.totals["transactions"] == 25


FAULTS = {
    "chain": "UPDATE transactions SET contributions = '[]' WHERE member_id = 'member-1' AND seq = 2",
    "transfers": """UPDATE transactions SET transfers = '[["POINTS", "issuer/earned", "available", 1]]'
        WHERE member_id = 'member-1' AND seq = 2""",
    "balances": "UPDATE members SET available = available + 1 WHERE member_id = 'member-2'",
    "lots": "UPDATE lots SET remaining = remaining - 1 WHERE member_id = 'member-3' AND seq = 3",
    "growth": "DELETE FROM growth_days WHERE member_id = 'member-4'",
    "caps": "INSERT INTO cap_uses SELECT bucket, member_id, 'task', '2026-06-15', 20 FROM members LIMIT 1",
    "outbox": "DELETE FROM outbox WHERE position = (SELECT max(position) FROM outbox)",
}


@pytest.mark.parametrize("check", FAULTS)
def test_a_planted_fault_is_found_and_placed(books: Points, check: str) -> None:
    report = asyncio.run(_with_fault(books.house, FAULTS[check]))
    found = {meaning: offenders for meaning, _, offenders in report.lines if offenders}
    assert CHECKS[check] in found
    assert all("member-" in offender for offender in found[CHECKS[check]])


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
