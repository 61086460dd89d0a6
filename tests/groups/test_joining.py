"""Who came and who left, told in any order: what is true of it in the end, and what is said of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from itertools import permutations

import pytest
from loyalty.groups.v1 import groups_events_pb2 as epb
from loyalty.groups.v1 import groups_service_pb2 as pb

from services.chassis.database import Database
from services.cli.servers import Postgres
from services.groups.commands import MoveOut, Settle
from services.groups.domain.profile import Ending, MembershipStatus
from services.groups.errors import GroupUnknown
from tests.groups.town import Town, make_database, on_street, scheme, shop
from tests.support import fresh

MINUTE = timedelta(minutes=1)


@pytest.fixture(scope="module")
def town_url(groups_server: Postgres) -> str:
    """A database of the module's own: sites and schemes are everybody's."""
    return make_database(groups_server)


@pytest.fixture
async def town(town_url: str) -> AsyncIterator[Town]:
    """The town, with two shops."""
    database = await Database.open(town_url, size=2, name="town")
    town = Town(database)
    await town.put_sites(shop("south", 0), shop("north", 2000))
    yield town
    await database.close()


@pytest.fixture
async def king(town: Town) -> str:
    """A scheme of a name of its own, for nobody who is not sent there."""
    calendar = [
        {
            "entry_id": "tuesday",
            "recurrence": "RECURRENCE_WEEKLY",
            "weekdays": [2],
            "local_time": "10:00",
            "claim_minutes": 60,
            "benefit_code": "whopper",
            "text": "半价",
        }
    ]
    nobody = [{"name": "nobody", "expression": "false"}]
    made = scheme(fresh("king"), audience=nobody, welcome="welcome to {group}", calendar=calendar)
    await town.put(made)
    return made.scheme_id


async def test_whoever_has_a_seat_takes_it(town: Town, king: str) -> None:
    seat = await town.seat("ann", king, home_site_id="south", entry_source="poster")
    town.wait(hours=1)
    answer = await town.join("ann", seat.group.group_id, occur_time=town.at - MINUTE)
    assert (answer.stale, answer.overbooked) == (False, False)
    assert answer.membership.status == pb.MEMBERSHIP_STATUS_JOINED
    assert answer.membership.membership_id == seat.membership.membership_id
    (joined,) = await town.heard("ann", epb.MemberJoined)
    assert joined.occur_time.ToDatetime(town.at.tzinfo) == town.at - MINUTE
    assert (joined.welcome, joined.entry_source, joined.membership_number) == (
        "welcome to 福利群",
        "poster",
        1,
    )
    (benefit,) = joined.benefits
    assert (benefit.benefit_code, benefit.text) == ("whopper", "半价")
    group = await town.group(seat.group.group_id)
    assert (group.seats_taken, group.overbooked) == (1, 0)
    town.wait(days=2)
    await town.do(Settle, "ann")
    assert (await town.membership("ann", king)).status is MembershipStatus.JOINED


async def test_whoever_comes_without_a_seat_takes_one_or_is_one_too_many(town: Town, king: str) -> None:
    group = await town.open(king, site_id="south")
    answers = [await town.join(fresh("bea"), group.group_id, entry_source="friend") for _ in range(5)]
    assert [answer.overbooked for answer in answers] == [False] * 3 + [True] * 2
    assert {answer.membership.basis for answer in answers} == {pb.ASSIGN_BASIS_JOINED}
    now = await town.group(group.group_id)
    assert (now.seats_taken, now.overbooked, now.members) == (3, 2, 5)
    first, *_ = answers
    await town.leave(first.membership.member_id, group.group_id)
    now = await town.group(group.group_id)
    assert (now.seats_taken, now.overbooked) == (3, 1)  # who was one too many has the seat
    assert len(await town.heard(group.group_id, epb.GroupFull)) == 1
    assert [one.seq for one in await town.groups(king)] == [1, 2]


async def test_whoever_joins_another_group_of_the_scheme_is_moved_there(town: Town, king: str) -> None:
    seat = await town.seat("cat", king, home_site_id="south")
    await town.join("cat", seat.group.group_id)
    other = await town.open(king, site_id="north")
    town.wait(minutes=1)
    answer = await town.join("cat", other.group_id)
    assert answer.membership.membership_id == seat.membership.membership_id
    assert await town.told("cat") == ["MemberAssigned", "MemberJoined", "MemberMoved", "MemberJoined"]
    (moved,) = await town.heard("cat", epb.MemberMoved)
    assert (moved.reason, moved.HasField("seat_expire_time")) == (
        epb.MEMBER_MOVE_REASON_JOINED_ELSEWHERE,
        False,
    )
    late = await town.join("cat", seat.group.group_id, occur_time=town.at - 2 * MINUTE)
    assert late.stale
    assert [(await town.group(g)).members for g in (seat.group.group_id, other.group_id)] == [0, 1]


async def test_whoever_leaves_is_told_where_the_next_group_is(town: Town, king: str) -> None:
    near = await town.open(king, site_id="north")
    seat = await town.seat("dan", king, home_site_id="south")
    await town.join("dan", seat.group.group_id)
    answer = await town.leave("dan", seat.group.group_id)
    assert (answer.membership.status, answer.next_group.group_id) == (
        pb.MEMBERSHIP_STATUS_LEFT,
        near.group_id,
    )
    (left,) = await town.heard("dan", epb.MemberLeft)
    assert (left.reason, left.next_group_id, left.HasField("join_time")) == (
        epb.MEMBER_LEAVE_REASON_LEFT,
        near.group_id,
        True,
    )
    second = await town.open(king, site_id="south")
    await town.join("dan", seat.group.group_id, occur_time=town.at + MINUTE)
    answer = await town.leave("dan", seat.group.group_id)
    assert answer.next_group.group_id == second.group_id  # of the same site, if there is one


@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
async def test_facts_come_to_the_same_in_any_order(town: Town, king: str, order: tuple[int, ...]) -> None:
    """Joined, left, and joined again: whoever is told last of what, the member is in the group."""
    member, group = fresh("eva"), await town.open(king, site_id="south")
    start = town.at
    town.wait(hours=1)
    for number in order:
        moment = start + number * MINUTE
        if number == 1:
            await town.leave(member, group.group_id, occur_time=moment)
        else:
            await town.join(member, group.group_id, occur_time=moment)
    membership = await town.membership(member, king)
    assert (membership.status, membership.arrive_time) == (MembershipStatus.JOINED, start + 2 * MINUTE)
    assert (await town.group(group.group_id)).members == 1


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=str)
async def test_whoever_left_has_left_though_its_coming_is_told_later(
    town: Town, king: str, order: tuple[int, ...]
) -> None:
    member, group = fresh("fay"), await town.open(king, site_id="south")
    for number in order:
        told = town.leave if number else town.join
        await told(member, group.group_id, occur_time=town.at + (number - 2) * MINUTE)
    assert (await town.profile(member)).active(king) is None
    assert (await town.group(group.group_id)).members == 0


async def test_a_fact_that_is_told_twice_is_one(town: Town, king: str) -> None:
    member, group = fresh("gus"), await town.open(king, site_id="south")
    for _ in range(2):
        await town.join(member, group.group_id)
    assert await town.told(member) == ["MemberJoined"]
    for _ in range(2):
        await town.leave(member, group.group_id)
    assert await town.told(member) == ["MemberJoined", "MemberLeft"]


async def test_a_fact_of_a_group_that_is_not_there_is_refused(town: Town) -> None:
    for told in (town.join, town.leave):
        with pytest.raises(GroupUnknown):
            await told("hal", "grp_" + "0" * 32)


async def test_a_list_that_lacks_a_member_ends_what_it_may_know_of(town: Town, king: str) -> None:
    kept, gone, later = (fresh("ian") for _ in range(3))
    group_id = (await town.seat(kept, king, home_site_id="south")).group.group_id
    await town.join(gone, group_id)
    listed = town.at
    town.wait(minutes=1)
    await town.join(later, group_id)
    for member in (kept, gone, later):
        await town.leave(member, group_id, occur_time=listed, ending=Ending.RECONCILED)
    active = [(await town.profile(member)).active(king) is not None for member in (kept, gone, later)]
    assert active == [True, False, True]
    (left,) = await town.heard(gone, epb.MemberLeft)
    assert left.reason == epb.MEMBER_LEAVE_REASON_RECONCILED


async def test_whoever_was_moved_and_does_not_come_has_left(town: Town, king: str) -> None:
    member = fresh("jan")
    await town.put_sites(shop("shut", 100))
    group_id = (await town.seat(member, king, home_site_id="shut")).group.group_id
    await town.join(member, group_id)
    await town.close("shut")
    await town.do(MoveOut, member, group_id=group_id)
    town.wait(hours=24)
    await town.do(Settle, member)
    assert await town.told(member) == ["MemberAssigned", "MemberJoined", "MemberMoved", "MemberLeft"]
    (left,) = await town.heard(member, epb.MemberLeft)
    assert left.reason == epb.MEMBER_LEAVE_REASON_SEAT_LAPSED
    assert (await town.membership(member, king)).status is MembershipStatus.LAPSED


async def test_whoever_was_moved_is_not_brought_back_by_what_was_before(town: Town, king: str) -> None:
    member = fresh("lea")
    old = (await town.seat(member, king, home_site_id="south")).group
    await town.open(king, site_id="north")
    await town.seat(member, king, location=on_street(2000))
    late = await town.join(member, old.group_id, occur_time=town.at - MINUTE)
    assert (late.stale, late.membership.site_id) == (True, "north")
    town.wait(minutes=1)
    back = await town.join(member, old.group_id)  # it did come to the old one, after it was moved
    assert (back.stale, back.membership.site_id) == (False, "south")


async def test_whoever_comes_to_a_closed_group_is_in_it_until_it_is_moved(town: Town, king: str) -> None:
    member, other = fresh("kim"), fresh("kim")
    await town.put_sites(shop("gone", 200))
    group_id = (await town.seat(other, king, home_site_id="gone")).group.group_id
    await town.close("gone")
    answer = await town.join(member, group_id)
    assert (answer.overbooked, answer.membership.group_id) == (True, group_id)
    for one in (member, other):
        await town.do(MoveOut, one, group_id=group_id)
    assert {(await town.membership(one, king)).site_id for one in (member, other)} == {"south"}
