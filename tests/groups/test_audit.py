"""The audit closes on sound books, and finds and places each fault planted in them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import asyncpg
import pytest
from loyalty.points.v1 import points_events_pb2 as points

from services.chassis import streams
from services.chassis.audit import STREAM_CHECK, Report
from services.chassis.clock import wall
from services.chassis.database import Database
from services.chassis.jobs import Jobs
from services.chassis.relay import Relay
from services.chassis.retention import OUTBOX_KEPT
from services.cli.servers import Nats, Postgres
from services.groups import events, store, tables
from services.groups.audit import CHECKS, audit
from services.groups.commands import RefundTold
from tests.groups.clockwork import Clockwork
from tests.groups.test_calendar_sweep import LUNCH
from tests.groups.town import by_event, make_database, scheme, shop
from tests.groups.village import segments
from tests.support import TIMEOUT, fresh

RULE = {"key": "life", "expression": "facts.orders_total == 0 ? '' : string(facts.spend_90d_minor)"}
MEMBERS = {"ann", "ben", "cem", "dan", "eve", "fay", "gus"}


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
def books(groups_server: Postgres, data: Path) -> Iterator[Books]:
    """A town with some history, of all kinds."""
    with Nats.start(data / "nats") as nats:
        books = Books(make_database(groups_server), groups_server, nats)
        asyncio.run(_live(books))
        yield books


async def _live(books: Books) -> None:
    database = await Database.open(books.url, size=4, name="test")
    try:
        town = Clockwork(database)
        await town.put_sites(*(shop(f"shop-{number}", 1000 * number) for number in range(3)))
        await town.programme_for_all(tag_rules=[RULE])
        rich = segments(rich="'life' in tags && tags.life != '0'", gold="tier == 'gold'")
        await town.put_for_all(
            scheme("fans", calendar=[LUNCH]),
            scheme("purse", "BY_TAG", segments=rich),
            scheme("sale", "FLASH"),
        )
        for part in (_fill, _move_out, _buy, _sell):
            await part(town)
        await _send(books, database)
    finally:
        await database.close()


async def _fill(town: Clockwork) -> None:
    """A group with three seats and one who came without, a seat in the next; one who left and came again."""
    for member in ("ann", "ben", "cem", "eve"):
        seat = await town.seat(member, "fans", home_site_id="shop-0")
        if member != "eve":
            await town.join(member, seat.group.group_id)
    group = (await town.membership("ann", "fans")).group_id
    await town.join("dan", group)
    town.wait(minutes=1)
    await town.leave("ben", group)
    town.wait(minutes=1)
    await town.seat("ben", "fans", home_site_id="shop-1")
    await town.join("gus", group)


async def _move_out(town: Clockwork) -> None:
    """A site that is closed, and lunch at another."""
    await town.seat("fay", "fans", home_site_id="shop-2")
    await town.close("shop-2")
    town.wait(hours=1)
    await town.work()


async def _buy(town: Clockwork) -> None:
    """Orders, a refund, a tier, and what follows of them, some days on."""
    await town.buy("ann", "shop-0", 1500)
    await town.buy("ben", "shop-1", 700)
    for order_id in (await town.profile("ben")).orders:
        await town.do(RefundTold, "ben", order_id=order_id, refund_id="r", amount_minor=-1, **by_event("ben"))
    assert await town.tell(points.TierChanged(**town.head("gus"), to_tier="gold")) == [None]
    await town.tag("eve", vip="yes")
    town.wait(days=3)
    await town.work()
    await town.work("evaluate")


async def _sell(town: Clockwork) -> None:
    """A sale that is over."""
    group = await town.open_flash("sale", sale_time=town.at + timedelta(hours=1))
    await town.join("cem", group.group_id)
    town.wait(hours=4)
    await town.work()
    await town.seat("eve", "fans", home_site_id="shop-0")


async def _send(books: Books, database: Database) -> None:
    """Has a relay send what was announced."""
    client = await streams.connect(books.nats.url, "test")
    relay = Relay(
        source="groups",
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
    assert report.totals["members"] == len(MEMBERS)
    assert all(seen for _, seen, _ in report.lines)  # there was something to look at, of each kind


FAULTS = {
    "members: nobody's rows": "DELETE FROM members WHERE member_id = 'ann'",
    "members: a group that is not there": "DELETE FROM groups WHERE status = 'OPEN' AND seats_taken > 0",
    "members: a row that cannot be read": """ALTER TABLE memberships DROP CONSTRAINT memberships_basis;
        UPDATE memberships SET basis = 'GUESSED' WHERE member_id = 'ann'""",
    "active: two": """DROP INDEX memberships_one_active;
        UPDATE memberships SET status = 'JOINED', end_time = NULL, ending = NULL, seat_expire_time = NULL
        WHERE member_id = 'ben' AND scheme_id = 'fans' AND number = 1""",
    "active: one is gone": "DELETE FROM memberships WHERE member_id = 'ben' AND number = 1",
    "due: a seat that nobody will let lapse": """UPDATE members SET next_due_time = evaluate_time
        WHERE member_id = 'eve'""",
    "due: too late": """ALTER TABLE members DROP CONSTRAINT members_due_when_evaluated;
        UPDATE members SET next_due_time = next_due_time + interval '1 day' WHERE member_id = 'ann'""",
    "facts: an order is gone": "DELETE FROM orders WHERE member_id = 'ann'",
    "facts: a refund is forgotten": "UPDATE orders SET refunds = '{}' WHERE member_id = 'ben'",
    "facts: a past that no order gives": """UPDATE members SET past_until = 'epoch', past = '{"city": null,
        "stores": {"shop-0": [1, "1969-01-01T00:00:00+00:00", "1969-01-01T00:00:00+00:00"]}}'
        WHERE member_id = 'ben'""",
    "facts: a tag of nothing": """INSERT INTO tags SELECT bucket, member_id, 'rich', 'yes', 'rule',
        NULL, now() FROM members WHERE member_id = 'gus'""",
    "seats": "UPDATE groups SET overbooked = overbooked + 1 WHERE overbooked > 0",
    "seats: a member is gone": "DELETE FROM memberships WHERE member_id = 'dan'",
    "seats: more than there are": """ALTER TABLE groups DROP CONSTRAINT groups_seats,
        DROP CONSTRAINT groups_full_without_a_seat;
        UPDATE groups SET seats_taken = seats_taken + 1, overbooked = overbooked - 1 WHERE overbooked > 0""",
    "places": "UPDATE memberships SET anchor = 'shop-1' WHERE member_id = 'ann' AND scheme_id = 'fans'",
    "places: another scheme": "UPDATE groups SET scheme_id = 'other' WHERE seats_taken > 0",
    "series: a number is gone": """DELETE FROM groups WHERE scheme_id = 'fans' AND anchor = 'shop-0'
        AND seq = 1""",
    "series: a number was given and forgotten": "UPDATE series SET last_seq = last_seq + 1",
    "sites": "UPDATE sites SET open = false WHERE site_id = 'shop-0'",
    "occasions": "DELETE FROM occasions",
    "occasions: announced twice": """INSERT INTO outbox (bucket, entity_key, stream, subject, event_id, body,
        traceparent, create_time) SELECT bucket, entity_key, stream, subject, 'evt_0', body, '', create_time
        FROM outbox WHERE subject LIKE '%BenefitDue' LIMIT 1""",
    "events: the last is gone": """DELETE FROM outbox WHERE entity_key = 'ann' AND position =
        (SELECT max(position) FROM outbox WHERE entity_key = 'ann')""",
    "events: of a group, the first is gone": "DELETE FROM outbox WHERE subject LIKE '%GroupOpened'",
    "events: counted twice": "UPDATE members SET version = version + 1 WHERE member_id = 'ann'",
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_planted_fault_is_found_and_placed(books: Books, fault: str) -> None:
    report = await _with_fault(books, FAULTS[fault])
    check = CHECKS[fault.partition(":")[0]]
    found = {meaning: offenders for meaning, _, offenders in report.lines if offenders}
    assert check in found, found
    whose = {offender.partition(":")[0] for offender in found[check]}
    assert all(
        who in MEMBERS or who.startswith(("grp_", "fans ", "sale", "purse ", "other ")) for who in whose
    ), whose


async def test_events_that_are_not_in_the_stream_as_they_were_written_are_found(books: Books) -> None:
    forged = """UPDATE outbox SET body = body || '\\x7801'::bytea WHERE entity_key = 'dan'
        AND subject LIKE '%MemberJoined'; UPDATE outbox SET event_id = 'evt_0' WHERE entity_key = 'fay'
        AND subject LIKE '%MemberMoved'"""
    report = await _with_fault(books, forged, stream=True)
    (offenders,) = [found for meaning, _, found in report.lines if meaning == STREAM_CHECK]
    assert sorted(offender.partition(":")[0] for offender in offenders) == ["dan", "fay"]


async def test_what_was_erased_is_no_fault(books: Books) -> None:
    erased = """UPDATE outbox SET erased = true, body = '' WHERE entity_key = 'ann'
        AND subject NOT LIKE '%MemberJoined'; DELETE FROM tags WHERE member_id = 'ann';
        DELETE FROM orders WHERE member_id = 'ann'"""
    report = await _with_fault(books, erased, stream=True)
    assert report.clean, report.lines


async def test_members_who_were_not_looked_at_yet_are_no_fault(books: Books) -> None:
    """A programme was put, and the job over all members has done half of them."""
    async with _copy(books) as url:
        database = await Database.open(url, size=4, name="test")
        try:
            town = Clockwork(database)
            town.wait(days=4)
            await town.programme_for_all(tag_rules=[{**RULE, "expression": "'always'"}])
            report = await audit(url)
            assert report.clean, report.lines
            await town.work("evaluate")
            tags = (await town.profile("ann")).tags
        finally:
            await database.close()
        assert tags["life"].value == "always"
        report = await audit(url)
        assert report.clean, report.lines


async def test_what_is_kept_no_longer_is_no_fault(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.chassis.audit.wall", lambda: wall() + OUTBOX_KEPT)
    report = await _with_fault(books, "DELETE FROM outbox WHERE position % 2 = 0")
    assert report.clean, report.lines


async def _with_fault(books: Books, sql: str, *, stream: bool = False) -> Report:
    """Plants a fault in a copy of the database, as its superuser, and audits the copy."""
    async with _copy(books) as url:
        connection = await asyncpg.connect(url)
        await connection.execute(sql)
        await connection.close()
        return await audit(url, stream_url=books.nats.url if stream else None)


@contextlib.asynccontextmanager
async def _copy(books: Books) -> AsyncIterator[str]:
    """A copy of the database, for its superuser."""
    copy = fresh("copy").replace("-", "_")
    admin = await asyncpg.connect(books.server.url())
    try:
        await admin.execute(f"CREATE DATABASE {copy} TEMPLATE {books.name} STRATEGY file_copy")
        yield books.server.url(copy)
    finally:
        await admin.execute(f"DROP DATABASE IF EXISTS {copy} WITH (FORCE)")
        await admin.close()
