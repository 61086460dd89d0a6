"""Seats on a real database: who gets which, who is asked to wait, and where members go who have to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from loyalty.groups.v1 import groups_events_pb2 as epb
from loyalty.groups.v1 import groups_service_pb2 as pb

from services.chassis.database import Database
from services.chassis.errors import RequestIdReused
from services.cli.servers import Postgres
from services.groups import assigning, closing
from services.groups.commands import (
    AssignMember,
    ClawBack,
    GrantReward,
    LapseSeat,
    MoveOut,
    Settle,
)
from services.groups.domain.profile import Ending, MembershipStatus
from services.groups.domain.seats import GroupStatus
from services.groups.errors import (
    Cooldown,
    GroupFull,
    GroupUnknown,
    InviterNeeded,
    NoSite,
    NotInSegment,
    SchemeUnknown,
    SchemeWithdrawn,
    SiteUnknown,
    ThresholdNotMet,
)
from tests.groups import village
from tests.groups.town import Town, by_event, make_database, on_street, scheme, shop
from tests.support import fresh

HOLD = timedelta(hours=24)


@pytest.fixture(scope="module")
def town_url(groups_server: Postgres) -> str:
    """A database of the module's own: sites and schemes are everybody's."""
    return make_database(groups_server)


@pytest.fixture
async def town(town_url: str) -> AsyncIterator[Town]:
    """The town, whose street has three shops, 1 km apart."""
    database = await Database.open(town_url, size=2, name="town")
    town = Town(database)
    await town.put_sites(
        *(
            shop(name, metres, city="杭州")
            for name, metres in (("south", 0), ("middle", 1000), ("north", 2000))
        )
    )
    yield town
    await database.close()


async def named(town: Town, kind: str = "BY_LOCATION", **more: Any) -> str:
    """A scheme of a name of its own, for nobody who is not sent there."""
    nobody = [{"name": "nobody", "expression": "false"}]
    made = scheme(fresh("scheme"), kind, **{"audience": nobody, **more})
    await town.put(made)
    return made.scheme_id


def notes(assignment: pb.Assignment) -> list[tuple[str, str]]:
    """The explanation: what was found, and at which site."""
    return [
        (pb.AssignNote.Name(step.note).removeprefix("ASSIGN_NOTE_"), step.site_id)
        for step in assignment.explanation
    ]


# --- by place -----------------------------------------------------------------------------------------


async def test_a_location_brings_a_member_to_the_nearest_site_and_stays_nowhere(town: Town) -> None:
    king = await named(town, welcome="{group} @ {site}", name_pattern="汉堡王{site}福利群{seq}")
    seat = await town.seat("ann", king, location=on_street(900), entry_source="poster")
    assert (seat.group.site_id, seat.distance_m, seat.basis) == ("middle", 100, pb.ASSIGN_BASIS_EXACT)
    assert notes(seat) == [("OPENED", "middle")]
    assert seat.group.name == "汉堡王MIDDLE福利群"
    assert seat.welcome == "汉堡王MIDDLE福利群 @ MIDDLE"
    assert seat.seat_expire_time.ToDatetime(town.at.tzinfo) == town.at + HOLD
    assert await town.told(seat.group.group_id) == ["GroupOpened"]
    (assigned,) = await town.heard("ann", epb.MemberAssigned)
    assert (assigned.group_id, assigned.entry_source, assigned.welcome) == (
        seat.group.group_id,
        "poster",
        seat.welcome,
    )
    kept = await town.membership("ann", king)
    assert (kept.cell, kept.distance_m) == ("300:1200", 100)


async def test_whoever_asks_again_has_the_same_seat_until_the_same_time(town: Town) -> None:
    king = await named(town)
    first = await town.seat("bea", king, location=on_street(0))
    town.wait(hours=5)
    again = await town.seat("bea", king, city="杭州")
    assert again.membership == first.membership
    assert notes(again) == [("KEPT", "south")]
    assert await town.told("bea") == ["MemberAssigned"]


@pytest.mark.parametrize(("margin_m", "moves"), [(900, True), (1100, False)])
async def test_a_nearer_site_takes_a_member_only_by_more_than_the_margin(
    town: Town, margin_m: int, moves: bool
) -> None:
    king, member = await named(town, margin_m=margin_m), fresh("member")
    first = await town.seat(member, king, location=on_street(0))
    await town.join(member, first.group.group_id)
    seat = await town.seat(member, king, location=on_street(1000))
    if not moves:
        assert notes(seat) == [("WITHIN_MARGIN", "middle"), ("KEPT", "south")]
        assert (seat.distance_m, seat.membership.status) == (1000, pb.MEMBERSHIP_STATUS_JOINED)
        return
    assert notes(seat) == [("OPENED", "middle"), ("MOVED_FROM", "south")]
    assert seat.membership.membership_id == first.membership.membership_id
    assert seat.membership.status == pb.MEMBERSHIP_STATUS_ASSIGNED
    assert await town.told(member) == ["MemberAssigned", "MemberJoined", "MemberMoved"]
    (moved,) = await town.heard(member, epb.MemberMoved)
    assert moved.reason == epb.MEMBER_MOVE_REASON_NEARER
    assert (await town.group(first.group.group_id)).members == 0


async def test_without_a_location_it_goes_by_city_home_site_and_default(town: Town) -> None:
    king = await named(town, default_site_id="north")
    basis = {}
    for name, asked in {
        "central": {"city": "杭州"},
        "named": {"home_site_id": "south"},
        "elsewhere": {"city": "nowhere"},
        "buyer": {},
        "of a city": {"city": "杭州"},
    }.items():
        member = fresh("member")
        if name in ("buyer", "of a city"):
            await town.buy(member, "south")
        seat = await town.seat(member, king, **asked)
        basis[name] = (seat.basis, seat.group.site_id, seat.distance_m)
    assert basis == {
        "central": (pb.ASSIGN_BASIS_CITY, "middle", 0),
        "named": (pb.ASSIGN_BASIS_HOME_SITE, "south", 0),
        "elsewhere": (pb.ASSIGN_BASIS_DEFAULT, "north", 0),
        "buyer": (pb.ASSIGN_BASIS_HOME_SITE, "south", 0),
        "of a city": (pb.ASSIGN_BASIS_CITY, "south", 0),
    }
    with pytest.raises(SiteUnknown):
        await town.seat(fresh("member"), king, home_site_id="nowhere")


async def test_where_no_place_is_known_there_are_seats_once_a_group_of_no_site_was_opened(
    town: Town,
) -> None:
    king = await named(town)
    with pytest.raises(NoSite):
        await town.seat("cat", king)
    opened = await town.open(king)
    seats = [await town.seat(fresh("member"), king) for _ in range(4)]
    assert {seat.basis for seat in seats} == {pb.ASSIGN_BASIS_DEFAULT}
    assert [seat.group.seq for seat in seats] == [1, 1, 1, 2]
    assert seats[0].group.group_id == opened.group_id


# --- full groups --------------------------------------------------------------------------------------


async def test_the_next_group_of_a_site_is_there_as_soon_as_one_is_full(town: Town) -> None:
    king = await named(town)
    seats = [await town.seat(f"dan-{number}", king, home_site_id="south") for number in range(4)]
    first, second = await town.groups(king)
    assert [seat.group.group_id for seat in seats] == [first.group_id] * 3 + [second.group_id]
    assert (first.status, second.status, second.previous_group_id) == (
        GroupStatus.FULL,
        GroupStatus.OPEN,
        first.group_id,
    )
    (full,) = await town.heard(first.group_id, epb.GroupFull)
    assert (full.seats_taken, full.next_group_id, full.version) == (3, second.group_id, 2)
    (opened,) = await town.heard(second.group_id, epb.GroupOpened)
    assert (opened.reason, opened.group_name) == (epb.GROUP_OPEN_REASON_OVERFLOW, "福利群2")

    await town.join("dan-0", first.group_id)
    await town.leave("dan-0", first.group_id)
    back = await town.seat("eva", king, home_site_id="south")
    assert back.group.group_id == first.group_id  # the first with a seat
    assert len(await town.heard(first.group_id, epb.GroupFull)) == 2
    assert len(await town.groups(king)) == 2  # none was opened again: the second has room


async def test_a_site_may_have_one_group_and_then_the_next_nearest_is_taken(town: Town) -> None:
    king = await named(town, overflow="OVERFLOW_NEXT_NEAREST", capacity=2)
    seats = [await town.seat(f"fay-{number}", king, location=on_street(400)) for number in range(3)]
    assert [seat.group.site_id for seat in seats] == ["south", "middle", "north"]
    assert notes(seats[2]) == [("FULL", "south"), ("FULL", "middle"), ("OPENED", "north")]
    await town.leave("fay-1", seats[1].group.group_id)  # of a seat that was only reserved
    assert (await town.seat("gus", king, location=on_street(400))).group.site_id == "middle"


def test_where_every_site_is_full_there_is_no_seat() -> None:
    made = village.scheme("BY_LOCATION", overflow="OVERFLOW_NEXT_NEAREST", capacity=2)
    here = village.Village(made, sites=(village.site("one"), village.site("two", 500)))
    for number in range(2):
        here.do(AssignMember, f"member-{number}", scheme_id="scheme", home_site_id="two")
    with pytest.raises(GroupFull):
        here.do(AssignMember, "member-2", scheme_id="scheme", home_site_id="two")


async def test_many_full_sites_are_passed_without_being_locked(town: Town) -> None:
    await town.put_sites(*(shop(f"row-{number}", 50_000 + number) for number in range(12)))
    king = await named(town, overflow="OVERFLOW_NEXT_NEAREST", capacity=2)
    members = [fresh("member") for _ in range(12)]
    for member in members:
        await town.seat(member, king, location=on_street(50_000))
    assert [g.site_id for g in await town.groups(king)] == [f"row-{number}" for number in range(12)]


# --- chosen groups ------------------------------------------------------------------------------------


async def test_a_chosen_group_is_given_or_others_are_named(town: Town) -> None:
    king = await named(town)
    there = await town.seat("hal", king, home_site_id="middle")
    group_id = there.group.group_id
    seat = (await town.assign("ian", chosen_group_id=group_id)).assignments[0]
    assert (seat.basis, seat.group.group_id) == (pb.ASSIGN_BASIS_CHOSEN, group_id)
    elsewhere = await town.seat("jan", king, home_site_id="north")
    moved = await town.seat("jan", king, chosen_group_id=group_id)
    assert notes(moved) == [("TAKEN", "middle"), ("MOVED_FROM", "north")]
    assert (await town.heard("jan", epb.MemberMoved))[0].reason == epb.MEMBER_MOVE_REASON_CHOSEN
    with pytest.raises(GroupFull) as refusal:
        await town.seat("kim", king, chosen_group_id=group_id)
    second = (await town.groups(king))[-1].group_id
    assert refusal.value.metadata["next_group_ids"].split(",") == [second, elsewhere.group.group_id]
    assert notes(await town.seat("ian", king, chosen_group_id=group_id)) == [("KEPT", "middle")]


async def test_a_group_that_is_not_there_or_not_in_the_scheme_is_unknown(town: Town) -> None:
    king, queen = await named(town), await named(town)
    there = await town.seat("leo", king, home_site_id="middle")
    for asked in (
        {"chosen_group_id": "grp_" + "0" * 32},
        {"scheme_id": queen, "chosen_group_id": there.group.group_id},
    ):
        with pytest.raises(GroupUnknown):
            await town.assign("mia", **asked)


# --- conditions ---------------------------------------------------------------------------------------


async def test_the_first_condition_that_is_not_met_is_named(town: Town) -> None:
    threshold = [
        {"name": "bought", "expression": "facts.orders_total > 0"},
        {"name": "vip", "expression": "tags.exists(key, key == 'vip')"},
    ]
    king = await named(town, threshold=threshold)
    for condition in ("bought", "vip"):
        with pytest.raises(ThresholdNotMet) as refusal:
            await town.seat("nia", king, home_site_id="south")
        assert refusal.value.metadata == {"condition": condition}
        await town.buy("nia", "south")
    await town.tag("nia", vip="1")
    await town.seat("nia", king, home_site_id="south")


async def test_whoever_left_by_itself_waits_for_the_cooldown(town: Town) -> None:
    king = await named(town, cooldown_hours=48)
    group_id = (await town.seat("oda", king, home_site_id="south")).group.group_id
    await town.join("oda", group_id)
    await town.leave("oda", group_id, ending=Ending.REMOVED)
    await town.seat("oda", king, home_site_id="south")  # who was removed may come again
    await town.join("oda", group_id)
    await town.leave("oda", group_id)
    until = town.at + timedelta(hours=48)
    with pytest.raises(Cooldown) as refusal:
        await town.seat("oda", king, home_site_id="south")
    assert refusal.value.metadata == {"until": until.isoformat()}
    town.clock.at = until
    assert (await town.seat("oda", king, home_site_id="south")).membership.number == 3


async def test_a_withdrawn_scheme_keeps_who_is_in_and_takes_nobody(town: Town) -> None:
    king = await named(town)
    await town.seat("pia", king, home_site_id="south")
    await town.put(scheme(king, version=2, withdrawn=True))
    assert notes(await town.seat("pia", king)) == [("KEPT", "south")]
    with pytest.raises(SchemeWithdrawn):
        await town.seat("quin", king, home_site_id="south")
    with pytest.raises(SchemeUnknown):
        await town.seat("quin", "no scheme")


# --- other kinds of schemes ---------------------------------------------------------------------------


async def test_a_tag_decides_about_the_group_where_a_scheme_goes_by_tags(town: Town) -> None:
    segments = [
        {"segment_id": name, "name": name.title(), "expression": f"'{name}' in tags"}
        for name in ("tea", "milk")
    ]
    club = await named(town, "BY_TAG", segments=segments, name_pattern="{segment}{seq}")
    with pytest.raises(NotInSegment):
        await town.seat("rob", club)
    await town.tag("rob", milk="1")
    await town.tag("sue", tea="1")
    milk, tea = [await town.seat(member, club) for member in ("rob", "sue")]
    assert [(s.group.name, s.group.segment_id, s.basis) for s in (milk, tea)] == [
        ("Milk", "milk", pb.ASSIGN_BASIS_SEGMENT),
        ("Tea", "tea", pb.ASSIGN_BASIS_SEGMENT),
    ]
    with pytest.raises(NotInSegment):
        await town.seat("rob", club, chosen_group_id=tea.group.group_id)


async def test_fans_are_seated_by_who_invited_them_and_a_sale_has_what_was_opened_for_it(town: Town) -> None:
    fans, sale = await named(town, "INVITE"), await named(town, "FLASH")
    with pytest.raises(InviterNeeded):
        await town.seat("tim", fans)
    seat = await town.seat("tim", fans, inviter_id="kol")
    assert (seat.group.inviter_id, seat.basis) == ("kol", pb.ASSIGN_BASIS_INVITER)
    with pytest.raises(GroupFull):
        await town.seat("tim", sale)
    await town.open_flash(sale, sale_time=town.at + timedelta(hours=1))
    seats = [await town.seat(fresh("member"), sale) for _ in range(3)]
    assert {seat.group.seq for seat in seats} == {1}
    with pytest.raises(GroupFull):
        await town.seat("tim", sale)  # no other one follows by itself


async def test_without_a_scheme_a_member_gets_a_seat_in_each_that_is_for_it(town: Town) -> None:
    mine = [{"name": "mine", "expression": "'una' in tags"}]
    never = [{"name": "never", "expression": "false"}]
    later = await named(town, audience=mine, priority=7)
    first = await named(town, audience=mine, priority=3)
    strict = await named(town, audience=mine, priority=5, threshold=never)
    await named(town, "INVITE", audience=mine)
    await town.tag("una", una="1")
    answer = await town.assign("una", location=on_street(0))
    assert [one.membership.scheme_id for one in answer.assignments] == [first, later]
    (refusal,) = answer.refusals
    assert (refusal.scheme_id, refusal.reason, dict(refusal.metadata)) == (
        strict,
        "THRESHOLD_NOT_MET",
        {"condition": "never"},
    )


# --- seats that lapse ---------------------------------------------------------------------------------


async def test_a_seat_that_nobody_comes_to_lapses_and_goes_to_the_next(town: Town) -> None:
    king = await named(town, capacity=2)
    first = await town.seat("val", king, home_site_id="south")
    expires = town.at + HOLD
    assert (await town.profile("val")).next_due_time == expires
    town.clock.at = expires + timedelta(minutes=3)
    await town.do(Settle, "val")
    lapsed = await town.membership("val", king)
    assert (lapsed.status, lapsed.end_time, lapsed.ending) == (MembershipStatus.LAPSED, expires, None)
    (told,) = await town.heard("val", epb.SeatLapsed)
    assert told.occur_time.ToDatetime(expires.tzinfo) == expires
    again = await town.seat("wim", king, home_site_id="south")
    assert again.group.group_id == first.group.group_id
    late = await town.join("val", first.group.group_id, occur_time=expires - timedelta(minutes=1))
    assert (late.overbooked, late.stale, late.membership.number) == (True, False, 2)


async def test_seats_that_fill_a_group_to_its_last_are_kept_where_nobody_came_without_one(town: Town) -> None:
    exact = await named(town, capacity=2, headroom=0)
    seats = [await town.seat(f"xan-{number}", exact, home_site_id="south") for number in range(2)]
    group_id = seats[0].group.group_id
    for number in range(2):
        await town.do(LapseSeat, f"xan-{number}", group_id=group_id)
    assert (await town.group(group_id)).members == 2


async def test_seats_of_a_crowded_group_are_given_up_as_many_as_are_needed(town: Town) -> None:
    king = await named(town)
    seats = [await town.seat(f"xia-{number}", king, home_site_id="south") for number in range(3)]
    group_id = seats[0].group.group_id
    for _ in range(2):  # one more than the platform takes
        await town.join(fresh("member"), group_id)
    for number in range(3):
        await town.do(LapseSeat, f"xia-{number}", group_id=group_id)
    told = [reason for n in range(3) for reason in await town.told(f"xia-{n}") if reason == "SeatLapsed"]
    assert len(told) == 2  # with the third there is room in the chat for who has a seat
    assert (await town.group(group_id)).members == 3


# --- closed sites and dissolved groups ----------------------------------------------------------------


async def test_members_of_a_closed_site_move_to_the_nearest_one_within_the_quota(town: Town) -> None:
    king = await named(town)
    await town.put_sites(shop("shut", 1900))
    seats = [await town.seat(f"yan-{number}", king, location=on_street(1900)) for number in range(3)]
    group_id = seats[0].group.group_id
    await town.join("yan-0", group_id)
    await town.put_programme(moves_per_day=2)
    await town.close("shut")
    async with town.database.read() as connection:
        closing_now = await closing.closing(connection, town.lore, town.at, "shut")
    (leaving,) = closing_now.leaving
    assert (leaving.group.group_id, closing_now.members, closing_now.local_days) == (group_id, 3, 2)
    assert leaving.to is not None
    assert (leaving.to.series[1], leaving.to.distance_m, leaving.to_group) == ("north", 100, None)

    for number in range(3):
        await town.do(MoveOut, f"yan-{number}", group_id=group_id)
    where = [(await town.membership(f"yan-{number}", king)).site_id for number in range(3)]
    assert where == ["north", "north", "shut"]
    town.wait(days=1)
    await town.do(MoveOut, "yan-2", group_id=group_id)  # its time is over by now
    assert await town.told("yan-0") == ["MemberAssigned", "MemberJoined", "MemberMoved", "MemberLeft"][:3]
    assert (await town.heard("yan-0", epb.MemberMoved))[0].reason == epb.MEMBER_MOVE_REASON_SITE_CLOSED
    emptied = await town.group(group_id)
    assert (emptied.status, emptied.members) == (GroupStatus.DISSOLVED, 0)
    (dissolved,) = await town.heard(group_id, epb.GroupDissolved)
    assert dissolved.reason == epb.GROUP_DISSOLVE_REASON_SITE_CLOSED
    await town.put_programme()


async def test_who_asks_while_its_site_is_closed_is_moved_at_once(town: Town) -> None:
    king = await named(town)
    await town.put_sites(shop("brief", 2100))
    member = fresh("member")
    await town.seat(member, king, location=on_street(2100))
    await town.close("brief")
    seat = await town.seat(member, king)
    assert (seat.group.site_id, notes(seat)) == ("north", [("KEPT", "north")])
    assert await town.told(member) == ["MemberAssigned", "MemberMoved"]


async def test_a_site_that_opens_again_has_its_groups_back(town: Town) -> None:
    king = await named(town)
    site = shop("again", 70_000)
    await town.put_sites(site)
    member = fresh("member")
    there = await town.seat(member, king, location=on_street(70_000))
    await town.close("again")
    await town.put_sites(site)
    assert (await town.seat(member, king)).group.group_id == there.group.group_id
    assert await town.told(member) == ["MemberAssigned"]


async def test_members_of_a_dissolved_group_leave_or_go_to_the_successor(town: Town) -> None:
    alone = await named(town)
    heir = await named(town, threshold=[{"name": "never", "expression": "false"}])
    same, other = fresh("scheme"), fresh("scheme")
    for name, successor in ((same, same), (other, heir)):
        nobody = [{"name": "nobody", "expression": "false"}]
        await town.put(scheme(name, successor_scheme_id=successor, audience=nobody))
    told = {}
    for scheme_id in (alone, same, other):
        member = fresh("member")
        group_id = (await town.seat(member, scheme_id, home_site_id="south")).group.group_id
        await town.join(member, group_id)
        await town.dissolve(group_id)
        await town.do(MoveOut, member, group_id=group_id)
        told[scheme_id] = (await town.told(member))[2:]
        (dissolved,) = await town.heard(group_id, epb.GroupDissolved)
        assert bool(dissolved.successor_group_id) == (scheme_id != alone)
    assert told == {alone: ["MemberLeft"], same: ["MemberMoved"], other: ["MemberLeft", "MemberAssigned"]}


# --- rewards ------------------------------------------------------------------------------------------


async def test_a_reward_is_a_seat_once_or_is_refused(town: Town) -> None:
    king = await named(town, default_site_id="south")
    strict = await named(town, default_site_id="south", threshold=[{"name": "never", "expression": "false"}])
    for _ in range(2):
        await town.do(GrantReward, "zoe", scheme_id=king, reward_id="r1", request_id="~r1", **by_event("zoe"))
    await town.do(GrantReward, "zoe", scheme_id=strict, reward_id="r2", **by_event("zoe"))
    assert await town.told("zoe") == ["MemberAssigned", "RewardFulfilled", "FulfilmentRefused"]
    (refused,) = await town.heard("zoe", epb.FulfilmentRefused)
    assert (refused.reward_id, refused.reason) == ("r2", "THRESHOLD_NOT_MET")


async def test_a_reward_that_is_taken_back_is_a_seat_no_more_or_never_becomes_one(town: Town) -> None:
    king = await named(town, default_site_id="south")
    for order in ((GrantReward, ClawBack), (ClawBack, GrantReward)):
        member = fresh("member")
        for kind in order:
            fields = {"scheme_id": king} if kind is GrantReward else {}
            name = assigning.claw_back_name("r") if kind is ClawBack else "~r"
            await town.do(kind, member, reward_id="r", request_id=name, **fields, **by_event(member))
        assert (await town.profile(member)).active(king) is None
        last = (await town.told(member))[-1]
        assert last == ("SeatLapsed" if order[0] is GrantReward else "FulfilmentRefused")
        lapses = {lapsed.reason for lapsed in await town.heard(member, epb.SeatLapsed)}
        assert lapses <= {epb.SEAT_LAPSE_REASON_REWARD_TAKEN_BACK}


async def test_who_came_by_a_reward_that_is_taken_back_is_removed(town: Town) -> None:
    king, member = await named(town, default_site_id="south"), fresh("member")
    await town.do(GrantReward, member, scheme_id=king, reward_id="r", request_id="~r", **by_event(member))
    group_id = (await town.membership(member, king)).group_id
    await town.join(member, group_id)
    back = assigning.claw_back_name("r")
    await town.do(ClawBack, member, reward_id="r", request_id=back, **by_event(member))
    ended = await town.membership(member, king)
    assert (ended.status, ended.ending) == (MembershipStatus.REMOVED, Ending.REMOVED)
    (left,) = await town.heard(member, epb.MemberLeft)
    assert left.reason == epb.MEMBER_LEAVE_REASON_REMOVED
    assert (await town.group(group_id)).members == 0


# --- asked again --------------------------------------------------------------------------------------


async def test_the_first_answer_is_the_answer(town: Town) -> None:
    king = await named(town)
    first = await town.do(AssignMember, "abe", scheme_id=king, home_site_id="south", request_id="r")
    town.wait(hours=30)
    assert first == await town.do(AssignMember, "abe", scheme_id=king, home_site_id="south", request_id="r")
    with pytest.raises(RequestIdReused):
        await town.do(AssignMember, "abe", scheme_id=king, home_site_id="north", request_id="r")
