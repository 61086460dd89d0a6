"""The service on a real database: what is asked by many at once, from several processes, and asked again."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from loyalty.groups.v1 import groups_events_pb2 as epb
from loyalty.groups.v1 import groups_service_pb2 as pb

from services.chassis.database import Database
from services.cli.servers import Postgres
from services.groups import service
from services.groups.commands import AssignMember, MoveOut
from services.groups.domain.seats import DissolveReason, GroupStatus
from services.groups.errors import (
    ChatAttached,
    FlashTimeInvalid,
    GroupDissolved,
    GroupFull,
    MemberUnknown,
    SchemeWithdrawn,
    SegmentUnknown,
    SiteClosed,
    SiteHasGroups,
    SiteUnknown,
    WrongKind,
)
from tests.groups.town import StandingClock, Town, check_seats, make_database, on_street, scheme, shop
from tests.support import fresh

Towns = tuple[Town, Town, Town]
RACERS = int(os.environ.get("RACERS", "1000"))
NOBODY = [{"name": "nobody", "expression": "false"}]


@pytest.fixture(scope="module")
def town_url(groups_server: Postgres) -> str:
    """A database of the module's own: sites and schemes are everybody's."""
    return make_database(groups_server)


@pytest.fixture
async def towns(town_url: str) -> AsyncIterator[Towns]:
    """Three processes of the service on one database, in one time."""
    clock = StandingClock()
    databases = [await Database.open(town_url, size=2, name=f"town {number}") for number in range(3)]
    first, second, third = (Town(database, clock) for database in databases)
    await first.put_sites(*(shop(f"shop-{number}", 1000 * number) for number in range(3)))
    yield first, second, third
    for database in databases:
        await database.close()


@pytest.fixture
def town(towns: Towns) -> Town:
    """The first of them."""
    return towns[0]


async def named(town: Town, kind: str = "BY_LOCATION", **more: Any) -> str:
    """A scheme of a name of its own, for nobody who is not sent there."""
    made = scheme(fresh("scheme"), kind, **{"audience": NOBODY, **more})
    await town.put(made)
    return made.scheme_id


# --- races --------------------------------------------------------------------------------------------


async def test_a_thousand_at_one_site_get_a_seat_each_in_groups_that_open_by_themselves(towns: Towns) -> None:
    king = await named(towns[0], capacity=120, headroom=20)
    members = [fresh("member") for _ in range(RACERS)]
    answers = await asyncio.gather(
        *(
            towns[number % 3].seat(member, king, location=on_street(10))
            for number, member in enumerate(members)
        )
    )
    groups, full = await towns[0].groups(king), RACERS // 100
    assert [(group.seq, group.seats_taken, group.status) for group in groups] == [
        *((seq, 100, GroupStatus.FULL) for seq in range(1, full + 1)),
        (full + 1, 0, GroupStatus.OPEN),
    ]
    assert Counter(answer.group.group_id for answer in answers) == {g.group_id: 100 for g in groups[:full]}
    await check_seats(towns[0].database, [king])
    told = [await towns[0].told(group.group_id) for group in groups]
    assert told == [["GroupOpened", "GroupFull"]] * full + [["GroupOpened"]]


async def test_of_many_who_want_the_last_seats_of_a_street_as_many_get_one_as_there_are(towns: Towns) -> None:
    king = await named(towns[0], overflow="OVERFLOW_NEXT_NEAREST", capacity=41, headroom=1)
    members = [fresh("member") for _ in range(200)]
    answers = await asyncio.gather(
        *(
            towns[number % 3].seat(member, king, location=on_street(10 * (number % 300)))
            for number, member in enumerate(members)
        ),
        return_exceptions=True,
    )
    refused = [answer for answer in answers if not isinstance(answer, pb.Assignment)]
    assert {type(answer) for answer in refused} <= {GroupFull}
    groups = {group.site_id: group for group in await towns[0].groups(king)}
    assert {group.seq for group in groups.values()} == {1}
    assert [groups[f"shop-{number}"].seats_taken for number in range(3)] == [40] * 3
    assert len(refused) + sum(group.members for group in groups.values()) == 200
    await check_seats(towns[0].database, [king])


async def test_everything_at_once_keeps_the_books(towns: Towns) -> None:
    """Members ask, come and go at two sites, one of which closes and opens meanwhile."""
    king = await named(towns[0], capacity=10, headroom=3, margin_m=100)
    await towns[0].put_sites(shop("left", 90_000), shop("right", 91_000))
    members = [fresh("member") for _ in range(40)]

    async def live(number: int, member: str) -> None:
        town = towns[number % 3]
        for turn in range(2):
            seat = await town.seat(member, king, location=on_street(90_000 + 1000 * ((number + turn) % 2)))
            if number % 4:
                await town.join(member, seat.group.group_id)
            if number % 5 == turn:
                await town.leave(member, seat.group.group_id)

    async def turn_over() -> None:
        for _ in range(3):
            await towns[2].close("left")
            await towns[2].put_sites(shop("left", 90_000))

    await asyncio.gather(turn_over(), *(live(number, member) for number, member in enumerate(members)))
    await check_seats(towns[0].database, [king])
    await towns[1].close("left")
    left = [group for group in await towns[0].groups(king) if group.site_id == "left"]
    for group in left:
        for member in members:
            await towns[0].do(MoveOut, member, group_id=group.group_id)
    await check_seats(towns[0].database, [king])
    emptied = [group for group in await towns[0].groups(king) if group.site_id == "left"]
    assert {(group.status, group.members) for group in emptied} == {(GroupStatus.DISSOLVED, 0)}
    for member in members:
        seats = [m for m in (await towns[0].profile(member)).memberships.values() if m.active]
        assert len(seats) <= 1


async def test_the_same_request_from_three_processes_is_done_once(towns: Towns) -> None:
    king, member = await named(towns[0]), fresh("member")
    asked = {"scheme_id": king, "home_site_id": "shop-0", "request_id": "r"}
    answers = await asyncio.gather(*(towns[n % 3].do(AssignMember, member, **asked) for n in range(12)))
    assert len(set(answers)) == 1
    assert await towns[0].told(member) == ["MemberAssigned"]


async def test_of_a_batch_each_command_has_its_own_answer(town: Town) -> None:
    king = await named(town)
    seats = [town.seat(fresh("member"), king, home_site_id="shop-0") for _ in range(5)]
    refused = [town.seat(fresh("member"), "no scheme") for _ in range(5)]
    answers = await asyncio.gather(*seats, *refused, return_exceptions=True)
    assert [type(answer).__name__ for answer in answers] == ["Assignment"] * 5 + ["SchemeUnknown"] * 5
    async with town.database.read() as connection:
        kept = await connection.fetchval("SELECT count(*) FROM members WHERE member_id LIKE 'member-%'")
        seated = await connection.fetchval("SELECT count(DISTINCT member_id) FROM memberships")
    assert kept == seated  # of whom nothing is known nothing is kept


async def test_what_a_change_of_tags_needs_of_groups_is_found_by_itself(town: Town) -> None:
    segments = [
        {"segment_id": name, "name": name, "expression": f"'{name}' in tags"} for name in ("milk", "tea")
    ]
    club = await named(town, "BY_TAG", audience=[], segments=segments, capacity=2)
    members = [fresh("member") for _ in range(4)]
    for member in members:
        await town.tag(member, tea="1")
    await asyncio.gather(*(town.tag(member, milk="1") for member in members))
    now = [await town.membership(member, club) for member in members]
    assert {membership.anchor for membership in now} == {"milk"}
    assert len({membership.group_id for membership in now}) == 4
    assert await town.told(members[0]) == ["TagsChanged", "MemberAssigned", "TagsChanged", "MemberMoved"]
    await check_seats(town.database, [club])
    await town.put(scheme(club, "BY_TAG", version=2, segments=segments, withdrawn=True))


# --- groups, apart from who is in them ----------------------------------------------------------------


async def test_a_group_is_opened_by_hand_where_its_scheme_has_groups(town: Town) -> None:
    king = await named(town)
    tags = await named(town, "BY_TAG", segments=[{"segment_id": "tea", "name": "Tea", "expression": "true"}])
    fans, sale, gone = (
        await named(town, "INVITE"),
        await named(town, "FLASH"),
        await named(town, withdrawn=True),
    )
    first = await town.open(king, site_id="shop-1")
    second = await town.open(king, site_id="shop-1")
    assert (first.seq, second.seq, second.previous_group_id) == (1, 2, first.group_id)
    assert (await town.open(tags, segment_id="tea")).anchor == "tea"
    assert (await town.open(fans, inviter_id="kol")).anchor == "kol"
    await town.put_sites(shop("shut", 5000, open=False))
    for scheme_id, place, refusal in (
        (king, {"site_id": "nowhere"}, SiteUnknown),
        (king, {"site_id": "shut"}, SiteClosed),
        (king, {"segment_id": "tea"}, WrongKind),
        (tags, {}, WrongKind),
        (tags, {"segment_id": "milk"}, SegmentUnknown),
        (sale, {}, WrongKind),
        (gone, {"site_id": "shop-1"}, SchemeWithdrawn),
    ):
        with pytest.raises(refusal):
            await town.open(scheme_id, **place)


async def test_a_sales_group_opens_within_three_hours_and_lives_for_four(town: Town) -> None:
    sale, king = await named(town, "FLASH"), await named(town)
    hour = timedelta(hours=1)
    for ahead, life in ((-hour, 2 * hour), (4 * hour, 4 * hour), (2 * hour, hour), (hour, 5 * hour)):
        with pytest.raises(FlashTimeInvalid):
            await town.open_flash(sale, sale_time=town.at + ahead, close_time=town.at + life)
    with pytest.raises(WrongKind):
        await town.open_flash(king, sale_time=town.at + hour)
    group = await town.open_flash(sale, sale_time=town.at + 3 * hour)
    assert group.close_time == town.at + 4 * hour
    seat = await town.seat(fresh("member"), sale)
    town.wait(hours=4)
    with pytest.raises(GroupFull):
        await town.seat(fresh("member"), sale)  # its time is over, though nobody has dissolved it
    await town.dissolve(group.group_id, reason=DissolveReason.LIFETIME)
    assert seat.group.group_id == group.group_id
    (dissolved,) = await town.heard(group.group_id, epb.GroupDissolved)
    assert (dissolved.reason, dissolved.member_count) == (epb.GROUP_DISSOLVE_REASON_LIFETIME, 1)


async def test_a_group_is_not_dissolved_before_its_time_nor_twice(town: Town) -> None:
    king = await named(town, lifetime_minutes=60)
    group = await town.open(king, site_id="shop-0")
    await town.dissolve(group.group_id, reason=DissolveReason.LIFETIME)
    assert (await town.group(group.group_id)).living
    for _ in range(2):
        await town.dissolve(group.group_id)
    assert await town.told(group.group_id) == ["GroupOpened", "GroupDissolved"]


async def test_a_chat_is_one_groups(towns: Towns) -> None:
    town = towns[0]
    king, chat = await named(town), fresh("chat")
    groups = [await town.open(king, site_id="shop-0") for _ in range(3)]
    answers = await asyncio.gather(
        *(
            towns[number].attach(group.group_id, chat_id=chat, entry_link="https://example.com/e")
            for number, group in enumerate(groups)
        ),
        return_exceptions=True,
    )
    (attached,) = [answer for answer in answers if not isinstance(answer, ChatAttached)]
    assert not isinstance(attached, BaseException)
    again = await town.attach(attached.group_id, entry_link="https://example.com/f")
    assert (again.chat_id, again.entry_link) == (chat, "https://example.com/f")
    await town.dissolve(attached.group_id)
    with pytest.raises(GroupDissolved):
        await town.attach(attached.group_id, chat_id=fresh("chat"))


async def test_an_occasion_is_announced_once_by_whoever_looks(towns: Towns) -> None:
    town = towns[0]
    calendar = [
        {
            "entry_id": "noon",
            "recurrence": "RECURRENCE_DAILY",
            "local_time": "12:30",
            "claim_minutes": 60,
            "benefit_code": "cola",
        }
    ]
    king = await named(town, calendar=calendar)
    group = await town.open(king, site_id="shop-0")
    assert group.next_occasion_time == town.at + timedelta(minutes=30)
    town.wait(days=2, minutes=31)  # nobody looked the days before, and their claims are over
    counts = await asyncio.gather(*(one.announce_due(group.group_id) for one in towns))
    assert sorted(counts) == [0, 0, 1]
    (due,) = await town.heard(group.group_id, epb.BenefitDue)
    assert due.benefit_code == "cola"
    assert (await town.group(group.group_id)).next_occasion_time == town.at + timedelta(days=1, minutes=-1)


async def test_a_site_with_groups_is_closed_and_not_put_closed(town: Town) -> None:
    king, name = await named(town), fresh("site")
    site = shop(name, 200_000)
    put = await town.put_sites(site, shop(fresh("site"), 200_500))
    assert (put.added, put.changed, put.unchanged) == (2, 0, 0)
    assert (await town.put_sites(site)).unchanged == 1
    await town.open(king, site_id=name)
    with pytest.raises(SiteHasGroups):
        await town.put_sites(shop(name, 200_000, open=False))
    await town.close(name)
    (group,) = await town.groups(king)
    assert group.status is GroupStatus.DISSOLVED  # nobody was in it
    with pytest.raises(SiteUnknown):
        await town.close("nowhere")


# --- members ------------------------------------------------------------------------------------------


async def test_a_member_that_is_erased_keeps_its_seat_and_nothing_is_known_of_it(town: Town) -> None:
    king, member = await named(town), fresh("member")
    await town.tag(member, vip="1")
    await town.seat(member, king, location=on_street(0), entry_source="poster")
    async with town.database.begin() as connection:
        erased = await service.erase(connection, member, town.at)
    assert (erased.tags, erased.cells) == (1, 1)
    profile = await town.profile(member)
    assert (profile.tags, profile.active(king) is not None) == ({}, True)
    async with town.database.begin() as connection:
        with pytest.raises(MemberUnknown):
            await service.erase(connection, fresh("nobody"), town.at)
