"""Time's work is done for members whom nobody touches, once, in steps; and for all whom a change concerns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta

import pytest
from loyalty.groups.v1 import groups_events_pb2 as epb
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from services.chassis.clock import wall
from services.chassis.database import Connection, Database
from services.chassis.ids import bucket
from services.cli.servers import Postgres
from services.groups import service, store, sweeps
from services.groups.commands import TagMember
from services.groups.domain.profile import Ending, MembershipStatus, Tag
from services.groups.domain.seats import DissolveReason, GroupStatus
from services.groups.wanting import Asked
from tests.conftest import NOON
from tests.groups.clockwork import Clockwork, empty
from tests.groups.town import PATIENCE, ZONE, check_seats, make_database, scheme, shop
from tests.groups.village import segments

DAY, HOUR = timedelta(days=1), timedelta(hours=1)


@pytest.fixture(scope="module")
def town_url(groups_server: Postgres) -> str:
    """A database of the module's own."""
    return make_database(groups_server)


@pytest.fixture
async def town(groups_server: Postgres, town_url: str) -> AsyncIterator[Clockwork]:
    """A street of shops, and nobody there: whatever is due is the test's own."""
    await empty(groups_server, town_url)
    database = await Database.open(town_url, size=4, name="test")
    town = Clockwork(database)
    await town.put_sites(*(shop(f"shop-{number}", 1000 * number) for number in range(3)))
    yield town
    await database.close()


# --- what falls due -----------------------------------------------------------------------------------


async def test_a_seat_lapses_once_though_nobody_touches_its_member(town: Clockwork) -> None:
    await town.put(scheme("fans"))
    await town.seat("ann", "fans", home_site_id="shop-0")
    town.wait(hours=23)
    assert not await town.sweep()
    assert town.clock.settled_at == town.at
    assert await town.told("ann") == ["MemberAssigned"]
    town.wait(hours=2)
    for _ in range(2):
        assert not await town.sweep()
        assert await town.told("ann") == ["MemberAssigned", "SeatLapsed"]
    lapsed = await town.membership("ann", "fans")
    # As of when it lapsed, not of when somebody looked.
    assert (lapsed.status, lapsed.end_time) == (MembershipStatus.LAPSED, NOON + 24 * HOUR)
    assert [group.seats_taken for group in await town.groups("fans")] == [0]


async def test_time_alone_moves_a_member_from_one_group_to_the_next(town: Clockwork) -> None:
    await town.put_programme(
        tag_rules=[{"key": "life", "expression": "facts.recency_days > 30 ? 'lost' : 'new'"}]
    )
    await town.put(
        scheme("life", "BY_TAG", segments=segments(new="tags.life == 'new'", lost="tags.life == 'lost'"))
    )
    await town.buy("ann", "shop-0")
    town.clock.at = datetime(NOON.year, NOON.month, NOON.day, tzinfo=ZONE) + 31 * DAY
    before = town.clock.at - timedelta(microseconds=1)
    town.clock.at, at = before, town.clock.at
    await town.work()
    assert (await town.membership("ann", "life")).anchor == "new"
    town.clock.at = at
    await town.work()
    assert (await town.profile("ann")).tags["life"].value == "lost"
    assert (await town.membership("ann", "life")).anchor == "lost"
    lapsed, moved = (await town.told("ann"))[2:4], (await town.told("ann"))[4:]
    assert (lapsed, moved) == (["SeatLapsed", "TagsChanged"], ["MemberAssigned"])


async def test_a_tag_ends_at_its_time(town: Clockwork) -> None:
    vip = segments(vip="'vip' in tags")
    await town.put(scheme("vip", "BY_TAG", segments=vip, on_threshold_lost="THRESHOLD_LOST_POLICY_REMOVE"))
    tag = Tag(key="vip", value="yes", source="crm", expire_time=town.at + HOUR, set_time=town.at)
    await town.do(TagMember, "ann", tags=(tag,))
    seat = await town.membership("ann", "vip")
    await town.join("ann", seat.group_id)
    town.wait(hours=1)
    assert not await town.sweep()
    assert (await town.profile("ann")).tags == {}
    assert (await town.membership("ann", "vip")).ending is Ending.THRESHOLD_LOST
    assert (await town.told("ann"))[-2:] == ["TagsChanged", "MemberLeft"]


async def test_work_is_done_in_steps_until_nothing_waits(
    town: Clockwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "SETTLE_BATCH", 5)
    await town.put(scheme("fans", capacity=20))
    members = [f"member-{number}" for number in range(12)]
    await asyncio.gather(*(town.seat(member, "fans", home_site_id="shop-0") for member in members))
    town.wait(days=1)
    assert await town.sweep()
    assert town.clock.settled_at is None
    assert await town.work() == 2
    assert town.clock.settled_at == town.at
    for member in members:
        assert await town.told(member) == ["MemberAssigned", "SeatLapsed"]


async def test_two_who_sweep_while_members_call_do_each_thing_once(town: Clockwork) -> None:
    await town.put(scheme("fans", capacity=30))
    other = Clockwork(town.database, town.clock)
    members = [f"member-{number}" for number in range(20)]
    await asyncio.gather(*(town.seat(member, "fans", home_site_id="shop-0") for member in members))
    town.wait(days=1)
    calls = (town.seat(member, "fans", home_site_id="shop-1") for member in members[::2])
    await asyncio.gather(town.sweep(), other.sweep(), *calls)
    for number, member in enumerate(members):
        again = ["MemberAssigned"] if number % 2 == 0 else []
        assert await town.told(member) == ["MemberAssigned", "SeatLapsed", *again]
    await check_seats(town.database, ["fans"])


# --- groups whose time is over ------------------------------------------------------------------------


async def test_a_sales_group_is_dissolved_on_time_and_its_members_leave(town: Clockwork) -> None:
    await town.put(scheme("sale", "FLASH"))
    group = await town.open_flash("sale", sale_time=town.at + HOUR)
    await town.join("ann", group.group_id)
    await town.seat("ben", "sale")
    town.clock.at += 4 * HOUR - timedelta(microseconds=1)
    assert not await town.sweep()
    assert (await town.group(group.group_id)).status is GroupStatus.OPEN
    town.wait(microseconds=1)
    for _ in range(2):
        assert not await town.sweep()
    (dissolved,) = await town.heard(group.group_id, epb.GroupDissolved)
    assert (dissolved.reason, dissolved.member_count) == (epb.GROUP_DISSOLVE_REASON_LIFETIME, 2)
    assert (await town.told("ann"))[-1] == "MemberLeft"
    assert (await town.told("ben"))[-1] == "SeatLapsed"
    assert (await town.group(group.group_id)).members == 0


async def test_a_group_whose_end_came_while_nobody_looked_is_dissolved_at_the_next_start(
    town: Clockwork,
) -> None:
    await town.put(scheme("sale", "FLASH"))
    group = await town.open_flash("sale", sale_time=town.at + HOUR)
    await town.join("ann", group.group_id)
    town.wait(days=3)
    started = Clockwork(town.database, town.clock)
    assert not await started.sweep()
    assert (await town.group(group.group_id)).status is GroupStatus.DISSOLVED
    assert (await town.membership("ann", "sale")).ending is Ending.GROUP_DISSOLVED


async def test_members_of_a_group_whose_lifetime_is_over_go_to_its_successor(town: Clockwork) -> None:
    await town.put(scheme("month", lifetime_minutes=60, successor_scheme_id="month"))
    await town.seat("ann", "month", home_site_id="shop-0")
    first = await town.membership("ann", "month")
    await town.join("ann", first.group_id)
    town.wait(hours=1)
    assert not await town.sweep()
    (dissolved,) = await town.heard(first.group_id, epb.GroupDissolved)
    moved = await town.membership("ann", "month")
    assert (moved.membership_id, moved.group_id) == (first.membership_id, dissolved.successor_group_id)
    assert (await town.told("ann"))[-1] == "MemberMoved"


# --- who has to leave ---------------------------------------------------------------------------------


async def a_full_shop(town: Clockwork, *, count: int = 7) -> list[str]:
    """Members who have joined groups at the first shop."""
    members = [f"member-{number}" for number in range(count)]
    for member in members:
        seat = await town.seat(member, "fans", home_site_id="shop-0")
        await town.join(member, seat.group.group_id)
    return members


async def where(town: Clockwork, members: list[str]) -> list[str]:
    return sorted([(await town.membership(member, "fans")).site_id for member in members])


async def test_members_of_a_closed_site_are_moved_within_each_days_quota(town: Clockwork) -> None:
    await town.put_programme(moves_per_day=3)
    await town.put(scheme("fans"))
    members = await a_full_shop(town)
    await town.close("shop-0")
    for moved in (3, 6, 7):
        for _ in range(2):
            assert not await town.sweep()
        assert await where(town, members) == ["shop-0"] * (7 - moved) + ["shop-1"] * moved
        assert town.clock.settled_at == town.at
        town.wait(days=1)
    for member in members:
        (told,) = await town.heard(member, epb.MemberMoved)
        assert told.reason == epb.MEMBER_MOVE_REASON_SITE_CLOSED
    # The last who left took the light out.
    first = [group for group in await town.groups("fans") if group.site_id == "shop-0"]
    assert {group.status for group in first} == {GroupStatus.DISSOLVED}
    await check_seats(town.database, ["fans"])


async def test_the_quota_is_one_for_all_who_sweep(town: Clockwork) -> None:
    await town.put_programme(moves_per_day=3)
    await town.put(scheme("fans"))
    members = await a_full_shop(town)
    await town.close("shop-0")
    others = [Clockwork(town.database, town.clock) for _ in range(2)]
    await asyncio.gather(*(one.sweep() for one in (town, *others)))
    assert await where(town, members) == ["shop-0"] * 4 + ["shop-1"] * 3


async def test_a_group_that_was_moved_out_too_often_stays_until_it_may_be_moved(town: Clockwork) -> None:
    await town.put_programme(moves_per_group=1)
    await town.put(scheme("fans", seat_hold_minutes=44640))
    await a_full_shop(town, count=1)
    for _ in range(2):  # closed, opened again, and closed again
        await town.close("shop-0")
        await town.put_sites(shop("shop-0", 0))
        town.wait(hours=1)
    await town.close("shop-0")
    assert not await town.sweep()
    assert await where(town, ["member-0"]) == ["shop-0"]
    town.wait(days=90)
    assert not await town.sweep()
    assert await where(town, ["member-0"]) == ["shop-1"]


async def test_of_a_dissolved_group_all_go_whatever_the_quota_is(
    town: Clockwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "SETTLE_BATCH", 2)
    monkeypatch.setattr(sweeps, "LEAVING_PAGE", 1)
    await town.put_programme(moves_per_day=1)
    await town.put(scheme("fans"))
    members = await a_full_shop(town)
    for group in await town.groups("fans"):
        await town.dissolve(group.group_id, reason=DissolveReason.OPERATOR)
    assert await town.work() == 4
    for member in members:
        assert (await town.membership(member, "fans")).ending is Ending.GROUP_DISSOLVED
    await check_seats(town.database, ["fans"])


async def test_seats_in_a_group_of_which_the_platform_takes_nobody_more_are_given_up(
    town: Clockwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "CROWDED_BATCH", 1)
    await town.put(scheme("fans"))
    full = [await town.open("fans", site_id=f"shop-{number}") for number in range(2)]
    for number, group in enumerate(full):
        await town.seat(f"ann-{number}", "fans", chosen_group_id=group.group_id)
        for guest in range(3):
            await town.join(f"guest-{number}-{guest}", group.group_id)
    await town.work("crowded")
    for number, group in enumerate(full):
        (lapsed,) = await town.heard(f"ann-{number}", epb.SeatLapsed)
        assert lapsed.reason == epb.SEAT_LAPSE_REASON_GROUP_FULL
        assert (await town.group(group.group_id)).members == 3
    assert not await town.sweep("crowded")


# --- whom a change concerns ---------------------------------------------------------------------------


async def test_all_members_are_looked_at_when_a_scheme_is_put_and_once_more_when_the_programme_is(
    town: Clockwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "EVALUATE_PAGE", 4)
    members = [f"member-{number}" for number in range(10)]
    for number, member in enumerate(members):
        await town.buy(member, "shop-0", amount_minor=100 * number)
    rich = segments(rich="'rich' in tags", poor="!('rich' in tags)")
    await town.put_for_all(scheme("purse", "BY_TAG", segments=rich, capacity=20))
    before = REGISTRY.get_sample_value("members_evaluated_total") or 0
    with capture_logs() as logs:
        await town.work("evaluate")
    assert {(await town.membership(member, "purse")).anchor for member in members} == {"poor"}
    assert [(line["event"], line["subject"], line["members"]) for line in logs] == [
        ("evaluated", "purse", 10)
    ]
    assert REGISTRY.get_sample_value("members_evaluated_total") == before + 10
    rule = {"key": "rich", "expression": "facts.spend_90d_minor > 450 ? 'yes' : ''"}
    await town.programme_for_all(tag_rules=[rule])
    await town.work("evaluate")
    anchors = [(await town.membership(member, "purse")).anchor for member in members]
    assert anchors == ["poor"] * 5 + ["rich"] * 5
    assert not await town.sweep("evaluate")
    await check_seats(town.database, ["purse"])


async def test_a_look_at_all_goes_on_in_another_process_and_ends_once(
    town: Clockwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "EVALUATE_PAGE", 3)
    members = [f"member-{number}" for number in range(7)]
    for member in members:
        await town.buy(member, "shop-0")
    await town.put_for_all(scheme("all", "BY_TAG", segments=segments(all="true"), capacity=20))
    assert await town.sweep("evaluate")
    async with town.database.read() as connection:
        (going,) = await store.open_evaluations(connection, 10)
    assert going.done == 3
    others = [Clockwork(town.database, town.clock) for _ in range(2)]
    await asyncio.gather(*(other.sweep("evaluate") for other in others))
    async with town.database.read() as connection:
        (going,) = await store.open_evaluations(connection, 10)
    assert going.done == 6  # both did the same members, who were counted once
    await others[0].work("evaluate")
    for member in members:
        assert await town.told(member) == ["MemberAssigned"]


async def test_who_stays_as_it_is_is_neither_written_nor_told_of(town: Clockwork) -> None:
    members = [f"member-{number}" for number in range(6)]
    for number, member in enumerate(members):
        await town.buy(member, "shop-0", amount_minor=100 * number)
    split = segments(rich="facts.spend_90d_minor > 200", poor="true")
    await town.put_for_all(scheme("purse", "BY_TAG", segments=split, capacity=20))
    await town.work("evaluate")
    rows = """SELECT array_agg((m.member_id, m.xmin, s.xmin)::text ORDER BY m.member_id)
        FROM members m JOIN memberships s USING (bucket, member_id)"""
    async with town.database.read() as connection:
        before = await connection.fetchval(rows)
    told = [await town.told(member) for member in members]
    rule = {"key": "rich", "expression": "facts.spend_90d_minor > 9000 ? 'yes' : ''"}
    await town.programme_for_all(tag_rules=[rule])
    await town.work("evaluate")
    async with town.database.read() as connection:
        assert await connection.fetchval(rows) == before
        assert not await store.open_evaluations(connection, 1)
    assert [await town.told(member) for member in members] == told
    assert len(before) == len(members)


async def test_who_is_tagged_while_all_are_looked_at_ends_where_it_belongs(
    town: Clockwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "EVALUATE_PAGE", 5)
    other = Clockwork(town.database, town.clock)
    members = [f"member-{number}" for number in range(20)]
    split = segments(**{name: f"'box' in tags && tags.box == '{name}'" for name in ("a1", "b1", "b2")})
    await town.put(scheme("split", "BY_TAG", segments=split, capacity=20, seat_hold_minutes=60))
    await asyncio.gather(*(town.tag(member, n="1") for member in members))
    for letter in "ab":
        rule = {"key": "box", "expression": f"'n' in tags ? '{letter}' + tags.n : ''"}
        await town.programme_for_all(tag_rules=[rule])
        retagged = members[::3] if letter == "b" else []
        await asyncio.gather(town.work("evaluate"), *(other.tag(member, n="2") for member in retagged))
    for number, member in enumerate(members):
        belongs = "b1" if number % 3 else "b2"
        assert (await town.profile(member)).tags["box"].value == belongs
        assert (await town.membership(member, "split")).anchor == belongs
    await check_seats(town.database, ["split"])


async def test_who_is_written_by_what_was_in_force_before_is_looked_at_after_that(
    town: Clockwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = asyncio.Event()
    older_transactions = store.older_transactions

    async def older(connection: Connection, since: datetime) -> int:
        count = await older_transactions(connection, since)
        looked.set()
        return count

    await town.tag("ann", other="1")
    tag = Tag(key="vip", value="yes", source="crm", set_time=town.at)
    command = TagMember(member_id="ann", request_id="r", payload_hash=b"", actor="test", tags=(tag,))
    monkeypatch.setattr(store, "older_transactions", older)
    async with town.database.begin() as connection:
        await service.post(connection, [Asked(command)], town.lore, town.at)
        rule = {"key": "is", "expression": "'vip' in tags ? 'vip' : ''"}
        await town.programme_for_all(tag_rules=[rule])  # which the command could not know of
        sweep = asyncio.create_task(town.sweep("evaluate"))
        await asyncio.wait_for(looked.wait(), PATIENCE)
    await sweep
    await town.work("evaluate")
    assert (await town.profile("ann")).tags["is"].value == "vip"


# --- what is kept no longer ---------------------------------------------------------------------------


async def test_sent_events_go_after_thirty_days_and_receipts_after_ninety(town: Clockwork) -> None:
    now = wall()
    event = """INSERT INTO outbox
        (bucket, entity_key, stream, subject, event_id, body, traceparent, create_time, sent_at)
        VALUES ($1, 'ann', 'GROUPS', 'subject', $2, '', '', $3, $3)"""
    receipt = "INSERT INTO inbox VALUES ($1, 'ann', 'groups', 'elsewhere', $2, 'POINTS', 1, $3)"
    async with town.database.begin() as connection:
        for days in (29, 31):
            await connection.execute(event, bucket("ann"), str(days), now - days * DAY)
        for days in (89, 91):
            await connection.execute(receipt, bucket("ann"), str(days), now - days * DAY)
    assert not await town.sweep("retention")
    async with town.database.read() as connection:
        kept = [
            *await connection.fetch("SELECT event_id FROM outbox WHERE stream = 'GROUPS'"),
            *await connection.fetch("SELECT event_id FROM inbox"),
        ]
    assert [row["event_id"] for row in kept] == ["29", "89"]
