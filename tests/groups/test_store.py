"""What is saved is what is found again, under the locks and without them, on a real database."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.chassis.answers import Answered, Done
from services.chassis.consumer import Delivery
from services.chassis.database import Connection, Database
from services.chassis.ids import bucket
from services.chassis.inbox import InboxKey
from services.groups import store
from services.groups.domain.coordinates import Point
from services.groups.domain.profile import (
    Basis,
    Ending,
    KeptOrder,
    Membership,
    MembershipStatus,
    Profile,
    Tag,
)
from services.groups.domain.seats import Group, GroupStatus, SeriesName
from services.groups.domain.sites import Site
from services.groups.errors import GroupUnknown
from services.groups.store import Changes, Seen, Wanted, WantedSeries
from tests.conftest import NOON
from tests.database import blocked, patiently
from tests.groups.profiles import profiles, successors
from tests.support import fresh

DAY = timedelta(days=1)


# --- helpers ------------------------------------------------------------------------------------------


async def write(connection: Connection, seen: Seen, *later: Profile, **more: Any) -> None:
    """Saves what members have become."""
    after = replace(seen, profiles=seen.profiles | {profile.member_id: profile for profile in later}, **more)
    await store.save(connection, Changes(seen, after), NOON)


async def keep(database: Database, *later: Profile, **more: Any) -> None:
    """Makes members that have all this, in a transaction of its own."""
    async with database.begin() as connection:
        seen = await store.lock(connection, Wanted(NOON, members={p.member_id for p in later}))
        await write(connection, seen, *later, **more)


async def see(database: Database, wanted: Wanted) -> Seen:
    """What a batch would see of members."""
    async with database.begin() as connection:
        return await store.lock(connection, wanted)


async def whole(database: Database, member: str) -> Profile:
    """All that a batch would see of a member."""
    return (await see(database, Wanted(NOON, {member}, facts_of={member}))).profiles[member]


async def look(database: Database, wanted: WantedSeries) -> Seen:
    """What a batch would see of groups."""
    seen = Seen()
    async with database.begin() as connection:
        await store.lock_series(connection, wanted, seen)
    return seen


async def open_groups(database: Database, *groups: Group) -> None:
    """Has groups in their series."""
    async with database.begin() as connection:
        seen = Seen()
        await store.lock_series(connection, WantedSeries(dict.fromkeys((g.series for g in groups), 0)), seen)
        series = dict(seen.series)
        for group in groups:
            series[group.series] = max(series[group.series], group.seq)
        after = replace(seen, series=series, groups={group.group_id: group for group in groups})
        await store.save(connection, Changes(seen, after), NOON)


async def known(database: Database, member: str) -> bool:
    """Whether there is such a member."""
    async with database.read() as connection:
        return bool(await store.profiles(connection, [member]))


def a_group(scheme_id: str, anchor: str = "site", seq: int = 1, **more: Any) -> Group:
    """A group of ten seats for twelve members."""
    group = Group(
        group_id=fresh("grp"),
        scheme_id=scheme_id,
        scheme_version=1,
        anchor=anchor,
        seq=seq,
        name="福利群",
        capacity=12,
        room=10,
        open_time=NOON,
    )
    return replace(group, **more)


def full(scheme_id: str, anchor: str = "site", seq: int = 1, **more: Any) -> Group:
    """A group without a seat."""
    return a_group(scheme_id, anchor, seq, seats_taken=10, status=GroupStatus.FULL, **more)


def a_seat(scheme_id: str, group_id: str = "grp", number: int = 1, **more: Any) -> Membership:
    """A seat that is kept for a day."""
    seat = Membership(
        membership_id=fresh("mbs"),
        scheme_id=scheme_id,
        group_id=group_id,
        anchor="site",
        site_id="site",
        number=number,
        status=MembershipStatus.ASSIGNED,
        basis=Basis.EXACT,
        assign_time=NOON,
        seat_expire_time=NOON + DAY,
    )
    return replace(seat, **more)


def arrived(seat: Membership) -> Membership:
    came: dict[str, Any] = {"join_time": NOON, "arrive_time": NOON, "seat_expire_time": None}
    return replace(seat, status=MembershipStatus.JOINED, **came)


def left(seat: Membership) -> Membership:
    return replace(arrived(seat), status=MembershipStatus.LEFT, end_time=NOON, ending=Ending.LEFT)


def with_stays(member: str, *stays: Membership, **more: Any) -> Profile:
    return Profile(member, memberships={stay.membership_id: stay for stay in stays}, **more)


# --- saved and found ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """A loop for the tests that Hypothesis calls, which are no coroutines."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def steady(runner: asyncio.Runner, groups_url: str) -> Iterator[Database]:
    """A pool in that loop."""
    database = runner.run(Database.open(groups_url, size=2, name="steady"))
    yield database
    runner.run(database.close())


@settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_was_saved_is_found_again_and_so_is_what_became_of_it(
    runner: asyncio.Runner, steady: Database, data: st.DataObject
) -> None:
    profile = data.draw(profiles(fresh("member")))
    later = data.draw(successors(profile))
    runner.run(keep(steady, profile))
    runner.run(_check_kept(steady, profile))
    runner.run(_rewrite(steady, later))
    runner.run(_check_kept(steady, later))


async def _check_kept(database: Database, profile: Profile) -> None:
    """A member is as it was kept: under the lock, and as it is read, alone and in a page."""
    member = profile.member_id
    recent = {one.order_id: profile.orders[one.order_id] for one in profile.recent()}
    async with database.read() as connection:
        read = await store.profiles(connection, [member, fresh("nobody")])
    assert read == {member: replace(profile, orders=recent)}
    assert await whole(database, member) == read[member]
    async with database.snapshot() as connection:
        before = (bucket(member), member[:-1])
        assert (await store.profile_page(connection, before, 1_000))[member] == read[member]
    named = {(member, order_id) for order_id in profile.orders}
    seen = await see(database, Wanted(NOON, {member}, facts_of={member}, orders=named))
    past = any(profile.past.holds(one) for one in profile.purchases())
    assert seen.profiles[member] == replace(profile, whole=past)


async def _rewrite(database: Database, later: Profile) -> None:
    async with database.begin() as connection:
        named = {(later.member_id, order_id) for order_id in later.orders}
        wanted = Wanted(NOON, {later.member_id}, facts_of={later.member_id}, orders=named)
        seen = await store.lock(connection, wanted)
        await write(connection, seen, later)


async def test_what_did_not_change_is_not_written(database: Database) -> None:
    member = fresh("member")
    first, second = a_seat("a"), a_seat("b")
    await keep(database, with_stays(member, first, second))
    query = "SELECT membership_id, xmin::text FROM memberships WHERE member_id = $1"
    async with database.begin() as connection:
        before = dict(await connection.fetch(query, member))
        seen = await store.lock(connection, Wanted(NOON, {member}))
        later = seen.profiles[member].copy()
        later.memberships[second.membership_id] = arrived(later.memberships[second.membership_id])
        await write(connection, seen, later)
        after = dict(await connection.fetch(query, member))
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {second.membership_id}


async def test_a_fact_that_was_to_change_is_a_defect(database: Database) -> None:
    group = a_group(fresh("scheme"))
    await open_groups(database, group)
    async with database.begin() as connection:
        seen = Seen()
        await store.lock_series(connection, WantedSeries({group.series: 1}), seen)
        after = replace(seen, groups={group.group_id: replace(group, room=11)})
        with pytest.raises(RuntimeError, match="a fact in groups"):
            await store.save(connection, Changes(seen, after), NOON)


async def test_a_membership_gives_way_to_the_next_in_one_batch(database: Database) -> None:
    member = fresh("member")
    name = fresh("mbs")
    seat, following = (a_seat("scheme", number=n, membership_id=f"{name}_{n}") for n in (1, 2))
    await keep(database, with_stays(member, seat))
    async with database.begin() as connection:
        seen = await store.lock(connection, Wanted(NOON, {member}))
        # The next one comes first here, and is saved after the one that it follows all the same.
        await write(connection, seen, with_stays(member, following, left(seat)))
    assert (await whole(database, member)).memberships == {following.membership_id: following}
    async with database.read() as connection:
        rows = await store.membership_page(connection, member, True, None, 9)
        assert [store.to_membership(row) for row in rows] == [following, left(seat)]
        rows = await store.membership_page(connection, member, False, None, 9)
        assert [store.to_membership(row) for row in rows] == [following]
        rows = await store.membership_page(connection, member, True, following.membership_id, 1)
        assert [store.to_membership(row) for row in rows] == [left(seat)]


# --- members and locks --------------------------------------------------------------------------------


async def test_a_member_to_whom_nothing_came_is_dropped_again(database: Database) -> None:
    idle, asked, told, seated = (fresh("member") for _ in range(4))
    async with database.begin() as connection:
        seen = await store.lock(connection, Wanted(NOON, {idle, asked, told, seated}))
        assert seen.made == {idle, asked, told, seated}
        await write(
            connection,
            seen,
            with_stays(seated, a_seat("scheme")),
            done=Done(
                new_answers={(asked, "request"): Answered(b"hash", b"answer")},
                new_events=[InboxKey(told, "groups", "points", "event", "POINTS", 1)],
            ),
        )
    assert [await known(database, member) for member in (idle, asked, told, seated)] == [
        *(False, True, True, True)
    ]


async def test_a_member_that_is_known_stays_when_nothing_comes(database: Database) -> None:
    member = fresh("member")
    await keep(database, Profile(member, version=1))
    async with database.begin() as connection:
        seen = await store.lock(connection, Wanted(NOON, {member}))
        assert seen.made == set()
        await write(connection, seen)
    assert await known(database, member)


async def waiting_see(database: Database, wanted: Wanted, series: WantedSeries | None = None) -> Seen:
    """What a batch sees that may have to wait for another, for as long as a slow machine takes."""
    async with database.begin() as connection:
        await patiently(connection)
        seen = await store.lock(connection, wanted)
        if series is not None:
            await store.lock_series(connection, series, seen)
        return seen


async def test_a_member_that_another_transaction_makes_meanwhile_is_seen_as_it_is(database: Database) -> None:
    member = fresh("member")
    seat = a_seat("scheme")
    async with database.begin() as connection:
        seen = await store.lock(connection, Wanted(NOON, {member}))
        later = asyncio.create_task(waiting_see(database, Wanted(NOON, {member})))
        await blocked(database, later)
        await write(connection, seen, with_stays(member, seat))
    found = await later
    assert (found.made, found.profiles) == (set(), {member: with_stays(member, seat)})


async def test_of_two_who_want_the_last_seat_the_second_sees_that_it_is_taken(database: Database) -> None:
    group = a_group(fresh("scheme"), seats_taken=9)
    await open_groups(database, group)
    wanted = WantedSeries({group.series: 1})
    async with database.begin() as connection:
        seen = await store.lock(connection, Wanted(NOON, {fresh("member")}))
        await store.lock_series(connection, wanted, seen)
        later = asyncio.create_task(waiting_see(database, Wanted(NOON, {fresh("member")}), wanted))
        await blocked(database, later)
        taken = seen.groups[group.group_id].enter()
        following = a_group(group.scheme_id, seq=2)
        groups = {group.group_id: taken, following.group_id: following}
        after = replace(seen, series={group.series: 2}, groups=groups)
        await store.save(connection, Changes(seen, after), NOON)
    found = await later
    assert found.series == {group.series: 2}
    assert found.groups == {following.group_id: following}


async def test_of_two_who_open_the_first_group_of_a_series_the_second_sees_it(database: Database) -> None:
    group = a_group(fresh("scheme"))
    wanted = WantedSeries({group.series: 1})
    async with database.begin() as connection:
        seen = await store.lock(connection, Wanted(NOON))
        await store.lock_series(connection, wanted, seen)
        assert (seen.series, seen.groups) == ({group.series: 0}, {})
        later = asyncio.create_task(waiting_see(database, Wanted(NOON), wanted))
        await blocked(database, later)
        after = replace(seen, series={group.series: 1}, groups={group.group_id: group})
        await store.save(connection, Changes(seen, after), NOON)
    found = await later
    assert (found.series, found.groups) == ({group.series: 1}, {group.group_id: group})


async def test_batches_that_want_the_same_members_and_series_never_wait_in_a_circle(
    database: Database,
) -> None:
    members = [fresh("member") for _ in range(6)]
    await keep(database, *(Profile(member, version=1) for member in members))
    series = [(fresh("scheme"), "site") for _ in range(6)]
    await look(database, WantedSeries(dict.fromkeys(series, 1)))

    async def replica(shift: int) -> None:
        own = {*members[shift:], *members[:shift][:2]}
        places = dict.fromkeys((*series[shift:], *series[: shift + 1]), 1)
        for _ in range(5):
            wanted = WantedSeries(places, moves_on=date(2026, 6, 15))
            seen = await waiting_see(database, Wanted(NOON, own), wanted)
            assert (set(seen.profiles), set(seen.series)) == (own, set(places))

    await asyncio.gather(*(replica(number) for number in range(4)))


# --- what a batch sees --------------------------------------------------------------------------------


async def test_first_answers_and_events_are_known_again(database: Database) -> None:
    member, other = fresh("member"), fresh("member")
    event = InboxKey(member, "groups", "points", fresh("event"), "POINTS", 7)
    answered = Answered(b"hash", b"answer")
    done = Done(new_answers={(member, "request"): answered}, new_events=[event])
    await keep(database, Profile(member), done=done)
    asked = {(member, "request"), (member, "another"), (other, "request")}
    seen = await see(database, Wanted(NOON, {member, other}, requests=asked, events=[event]))
    assert seen.done == Done({(member, "request"): answered}, {tuple(event[:4])})


async def test_of_memberships_the_latest_of_each_scheme_is_seen(database: Database) -> None:
    member = fresh("member")
    stays = [
        left(a_seat("a", number=1)),
        left(a_seat("a", number=2)),
        a_seat("a", number=3),
        left(a_seat("b", number=1)),
    ]
    await keep(database, with_stays(member, *stays))
    profile = await whole(database, member)
    assert profile.memberships == {stay.membership_id: stay for stay in stays[2:]}
    assert (profile.active("a"), profile.active("b")) == (stays[2], None)


async def test_tags_and_orders_are_seen_of_whom_they_are_asked_or_who_is_to_be_evaluated(
    database: Database,
) -> None:
    asked, due, later, new = (fresh("member") for _ in range(4))
    tag = Tag(key="vip", value="yes", source="crm", set_time=NOON)
    order = KeptOrder(order_id="one", store_id="site", paid_time=NOON, amount_minor=5)

    def told(member: str, evaluate: datetime | None) -> Profile:
        profile = Profile(member, evaluate_time=evaluate, next_due_time=evaluate)
        return replace(profile, tags={"vip": tag}, orders={"one": order})

    await keep(database, told(asked, None), told(due, NOON), told(later, NOON + DAY))
    seen = await see(database, Wanted(NOON, {asked, due, later, new}, facts_of={asked}))
    found = {name: (p.known, p.tags, p.orders) for name, p in seen.profiles.items()}
    everything = (True, {"vip": tag}, {"one": order})
    assert found == {asked: everything, due: everything, later: (False, {}, {}), new: (True, {}, {})}


async def test_of_a_series_are_seen_its_last_group_those_named_and_those_with_seats_enough(
    database: Database,
) -> None:
    scheme = fresh("scheme")
    groups = [
        full(scheme, seq=1),
        full(scheme, seq=2),
        a_group(scheme, seq=3, seats_taken=8),
        a_group(scheme, seq=4, seats_taken=9),
        a_group(scheme, seq=5),
        a_group(scheme, seq=6, status=GroupStatus.CLOSED),
        full(scheme, seq=7),
    ]
    await open_groups(database, *groups)
    series = groups[0].series

    async def seqs(seats: int, *named: Group) -> list[int]:
        wanted = WantedSeries({series: seats}, groups={group.group_id for group in named})
        seen = await look(database, wanted)
        assert seen.series == {series: 7}
        return sorted(group.seq for group in seen.groups.values())

    assert await seqs(0) == [7]
    assert await seqs(0, groups[1]) == [2, 7]
    assert await seqs(1) == [3, 7]
    assert await seqs(2) == [3, 7]
    assert await seqs(3) == [3, 4, 7]
    assert await seqs(4, groups[4]) == [3, 4, 5, 7]
    assert await seqs(1000) == [3, 4, 5, 7]


async def test_moves_of_a_day_are_counted_under_a_lock(database: Database) -> None:
    day = date(2031, 5, 1)
    async with database.begin() as connection:
        before = await store.moves(connection, day)
    for count in range(before, before + 3):
        async with database.begin() as connection:
            seen = Seen()
            await store.lock_series(connection, WantedSeries(moves_on=day), seen)
            assert seen.moves == {day: count}
            await store.save(connection, Changes(seen, replace(seen, moves={day: count + 1})), NOON)
            assert await store.moves(connection, day) == count + 1


# --- groups without locks -----------------------------------------------------------------------------


async def test_a_series_has_room_where_a_group_has_a_seat_or_none_lives(database: Database) -> None:
    scheme = fresh("scheme")
    seats = [full(scheme, "b"), a_group(scheme, "b", 2), a_group(scheme, "b", 3)]
    gone = [
        a_group(scheme, "c", status=GroupStatus.DISSOLVED),
        a_group(scheme, "d", status=GroupStatus.CLOSED),
    ]
    await open_groups(database, full(scheme, "a"), *seats, *gone)
    names: list[SeriesName] = [(scheme, anchor) for anchor in "abcde"]
    async with database.read() as connection:
        assert await store.rooms(connection, names) == {
            (scheme, "b"): seats[1],
            (scheme, "c"): None,
            (scheme, "d"): None,
            (scheme, "e"): None,
        }
        assert await store.rooms(connection, []) == {}


async def test_groups_are_listed_by_id_as_they_are_asked_for(database: Database) -> None:
    scheme, site, chat = fresh("scheme"), fresh("site"), fresh("chat")
    groups = [
        a_group(scheme, site, 1, site_id=site),
        full(scheme, site, 2, site_id=site, chat_id=chat),
        a_group(scheme, "other", 1, site_id=fresh("site")),
    ]
    groups = [replace(group, group_id=f"{scheme}_{number}") for number, group in enumerate(groups)]
    await open_groups(database, *groups)
    async with database.read() as connection:

        async def listed(after: str | None = None, most: int = 9, **which: Any) -> list[Group]:
            rows = await store.group_page(connection, **which, after=after, most=most)
            return [store.to_group(row) for row in rows]

        assert await listed(scheme_id=scheme) == groups
        assert await listed(scheme_id=scheme, after=groups[0].group_id, most=1) == [groups[1]]
        assert await listed(scheme_id=scheme, site_id=site, status="OPEN") == [groups[0]]
        assert await listed(chat_id=chat) == [groups[1]]
        assert await store.groups_of_site(connection, site) == groups[:2]
        assert await store.groups_of_site(connection, "") == []
        named = [groups[2].group_id, fresh("grp")]
        assert await store.groups(connection, named) == {groups[2].group_id: groups[2]}


async def test_of_two_who_attach_a_chat_the_second_sees_whose_it_is(database: Database) -> None:
    chat, group = fresh("chat"), a_group(fresh("scheme"))
    await open_groups(database, group)

    async def second() -> str | None:
        async with database.begin() as connection:
            await connection.execute("SET LOCAL lock_timeout = '20s'")
            await connection.execute("SET LOCAL statement_timeout = '20s'")
            await connection.execute("SET LOCAL application_name = 'waits'")
            return await store.lock_chat(connection, chat)

    async with database.begin() as connection:
        assert await store.lock_chat(connection, chat) is None
        later = asyncio.create_task(second())
        await blocked(database, later)
        seen = Seen()
        await store.lock_series(connection, WantedSeries({group.series: 0}), seen)
        groups = {group.group_id: replace(group, chat_id=chat)}
        await store.save(connection, Changes(seen, replace(seen, groups=groups)), NOON)
    assert await later == group.group_id


async def test_the_members_of_a_group_are_listed_by_bucket_and_id(database: Database) -> None:
    group_id = fresh("grp")
    members = sorted((fresh("member") for _ in range(5)), key=lambda name: (bucket(name), name))
    await keep(
        database,
        *(with_stays(member, arrived(a_seat("scheme", group_id))) for member in members),
        with_stays(fresh("member"), left(a_seat("scheme", group_id))),
        with_stays(fresh("member"), a_seat("scheme", fresh("grp"))),
    )
    found: list[str] = []
    after = store.BEFORE_ALL
    async with database.read() as connection:
        while rows := await store.group_members(connection, group_id, after, 2):
            found += [row["member_id"] for row in rows]
            after = (rows[-1]["bucket"], rows[-1]["member_id"])
    assert found == members


async def test_all_members_are_walked_in_the_order_of_their_keys(database: Database) -> None:
    members = sorted((fresh("member") for _ in range(3)), key=lambda name: (bucket(name), name))
    await keep(database, *(Profile(member, version=1) for member in members))
    walked: list[store.MemberKey] = [store.BEFORE_ALL]
    async with database.read() as connection:
        while rows := await store.member_page(connection, walked[-1], 100):
            walked += rows
    assert walked == sorted(walked)
    assert [name for _, name in walked if name in members] == members


async def test_what_is_kept_of_nobody_stops_no_walk_over_all_members(database: Database) -> None:
    members = sorted((fresh("member") for _ in range(3)), key=lambda name: (bucket(name), name))
    first, nobody, _ = members
    tag = Tag(key="vip", value="yes", source="crm", set_time=NOON)
    order = KeptOrder(order_id="one", store_id="site", paid_time=NOON, amount_minor=5)
    of_each: dict[str, Any] = {"version": 1, "known": True, "tags": {"vip": tag}, "orders": {"one": order}}
    kept = {name: with_stays(name, a_seat("scheme"), **of_each) for name in members}
    await keep(database, *kept.values())
    async with database.begin() as connection:
        await connection.fetch("DELETE FROM members WHERE member_id = $1", nobody)
    async with database.snapshot() as connection:
        page = await store.profile_page(connection, (bucket(first), first[:-1]), 1_000)
    assert {name: page.get(name) for name in members} == kept | {nobody: None}
    await see(database, Wanted(NOON, {nobody}))  # is made again: other tests walk here too


# --- what is due --------------------------------------------------------------------------------------

LONG_AGO = datetime(1990, 1, 1, tzinfo=UTC)  # before whatever other tests have there


async def test_members_and_groups_are_due_longest_ago_first(database: Database) -> None:
    scheme = fresh("scheme")
    members = [fresh("member") for _ in range(3)]
    times = [LONG_AGO - DAY, LONG_AGO - 2 * DAY, NOON]
    await keep(
        database, *(Profile(name, next_due_time=time) for name, time in zip(members, times, strict=True))
    )
    groups = [
        a_group(scheme, seq=number, close_time=time, next_occasion_time=time)
        for number, time in enumerate(times, 1)
    ]
    dissolved = a_group(scheme, seq=4, close_time=LONG_AGO - 3 * DAY, status=GroupStatus.DISSOLVED)
    await open_groups(database, *groups, dissolved)
    async with database.read() as connection:
        assert await store.due_members(connection, LONG_AGO, 9) == [members[1], members[0]]
        assert await store.closing_groups(connection, LONG_AGO, 9) == [groups[1], groups[0]]
        assert await store.closing_groups(connection, LONG_AGO, 1) == [groups[1]]
        assert await store.announcing_groups(connection, LONG_AGO, 9) == [groups[1], groups[0]]


async def test_closed_and_dissolved_groups_are_seen_until_the_last_has_left(database: Database) -> None:
    scheme = fresh("scheme")
    groups = [
        a_group(scheme, seq=1, seats_taken=1),
        a_group(scheme, seq=2, seats_taken=1, status=GroupStatus.CLOSED),
        a_group(scheme, seq=3, overbooked=1, status=GroupStatus.DISSOLVED),
        a_group(scheme, seq=4, status=GroupStatus.DISSOLVED),
    ]
    await open_groups(database, *groups)
    after, found = "", []
    async with database.read() as connection:
        while page := await store.leaving_groups(connection, after, 10):
            found += [group for group in page if group.scheme_id == scheme]
            after = page[-1].group_id
    assert found == sorted(groups[1:3], key=lambda group: group.group_id)


async def test_seats_that_are_kept_in_a_group_that_takes_nobody_more_are_seen(database: Database) -> None:
    scheme = fresh("scheme")
    crowd: dict[str, Any] = {"overbooked": 2}
    crowded, quiet, shut = (
        full(scheme, seq=1, **crowd),
        full(scheme, seq=2),
        replace(full(scheme, seq=3, **crowd), status=GroupStatus.CLOSED),
    )
    settled = full(scheme, seq=4, **crowd)
    exact = replace(
        full(scheme, seq=5), capacity=quiet.seats_taken
    )  # all seats are given, nobody came without
    await open_groups(database, crowded, quiet, shut, settled, exact)
    waiting = fresh("member")
    await keep(
        database,
        with_stays(waiting, a_seat("a", crowded.group_id)),
        with_stays(fresh("member"), arrived(a_seat("a", crowded.group_id))),
        with_stays(fresh("member"), a_seat("a", quiet.group_id)),
        with_stays(fresh("member"), a_seat("a", shut.group_id)),
        with_stays(fresh("member"), arrived(a_seat("a", settled.group_id))),
    )
    after = ""
    found: dict[str, list[str]] = {}
    async with database.read() as connection:
        while page := await store.crowded_seats(connection, after, 1):
            found |= page
            after = max(page)
    mine = {crowded.group_id, quiet.group_id, shut.group_id, settled.group_id, exact.group_id}
    assert {name: members for name, members in found.items() if name in mine} == {
        crowded.group_id: [waiting],
        settled.group_id: [],
    }


async def test_an_occasion_is_announced_once(database: Database) -> None:
    group_id = fresh("grp")
    first, second, third = (store.Announced(group_id, f"occ_{number}", NOON) for number in range(3))
    async with database.begin() as connection:
        assert await store.add_occasions(connection, [second, first]) == [second, first]
    async with database.begin() as connection:
        assert await store.add_occasions(connection, [first, third, second]) == [third]
        assert await store.add_occasions(connection, []) == []


async def test_how_often_a_group_was_moved_out_is_counted_since_an_instant(database: Database) -> None:
    often, once, never = (fresh("grp") for _ in range(3))
    async with database.begin() as connection:
        moved = [(often, NOON - DAY), (often, NOON), (often, NOON), (once, NOON), (once, NOON - DAY * 90)]
        for group_id, at in moved:
            await store.add_relocation(connection, group_id, at)
        since = NOON - DAY * 90
        found = await store.relocations(connection, [often, once, never], since)
        assert found == {often: 2, once: 1}


# --- sites, schemes, programmes -----------------------------------------------------------------------


async def test_sites_are_kept_and_every_change_raises_the_revision(database: Database) -> None:
    city, first, second = fresh("city"), fresh("site_a"), fresh("site_b")
    here = Site(site_id=first, name="朝阳", city=city, point=Point(39.9, 116.4), priority=2)
    there = Site(site_id=second, name="海淀", city=city, point=Point(-0.5, -180.0), open=False)
    async with database.begin() as connection:
        before = await store.revision(connection)
        await store.change_sites(connection)
        await store.save_sites(connection, [here, there], "operator", NOON)
    moved = replace(here, name="朝阳二店", open=False)
    async with database.begin() as connection:
        assert await store.change_sites(connection) >= before + 2
        await store.save_sites(connection, [moved], "operator", NOON + DAY)
    async with database.read() as connection:
        assert await store.revision(connection) >= before + 2
        rows = await store.sites(connection, [first, fresh("site")])
        assert [(store.to_site(row), row["update_time"]) for row in rows] == [(moved, NOON + DAY)]
        assert {site.site_id: site for site in await store.all_sites(connection)}[second] == there
        rows = await store.site_page(connection, city, True, None, 9)
        assert [store.to_site(row) for row in rows] == [moved, there]
        assert await store.site_page(connection, city, False, None, 9) == []
        rows = await store.site_page(connection, None, True, first, 1)
        assert [store.to_site(row) for row in rows] == [there]


async def test_schemes_are_kept_version_by_version(database: Database) -> None:
    name, other = fresh("scheme_a"), fresh("scheme_b")
    made: dict[str, Any] = {"kind": "BY_TAG", "author": "operator", "create_time": NOON}
    async with database.begin() as connection:
        assert await store.lock_last_scheme(connection, name) is None
        for version in (1, 2):
            body = b"%d" % version
            await store.add_scheme(
                connection, scheme_id=name, version=version, withdrawn=version == 2, body=body, **made
            )
        await store.add_scheme(connection, scheme_id=other, version=1, withdrawn=False, body=b"", **made)
        last = dict(await store.lock_last_scheme(connection, name) or {})
        assert last == made | {"scheme_id": name, "version": 2, "withdrawn": True, "body": b"2"}
    async with database.read() as connection:
        first = dict(await store.scheme(connection, name, 1) or {})
        assert first == made | {"scheme_id": name, "version": 1, "withdrawn": False, "body": b"1"}
        assert await store.scheme(connection, name, 3) is None
        heads = await store.scheme_heads(connection)
        assert (heads[name], heads[other]) == (2, 1)
        rows = await store.schemes(connection, [(name, 2), (other, 1), (other, 2)])
        assert {(row["scheme_id"], row["version"]) for row in rows} == {(name, 2), (other, 1)}

        async def listed(kind: str | None, withdrawn: bool, after: str | None = None) -> list[str]:
            rows = await store.scheme_page(connection, kind, withdrawn, after, 1000)
            return [row["scheme_id"] for row in rows if row["scheme_id"] in (name, other)]

        assert await listed("BY_TAG", True) == [name, other]
        assert await listed(None, False) == [other]
        assert await listed(None, True, after=name) == [other]
        assert await listed("FLASH", True) == []


async def test_the_programme_is_kept_version_by_version(database: Database) -> None:
    async with database.begin() as connection:
        last = await store.lock_last_programme(connection)
        first = 1 if last is None else last["version"] + 1
        put: list[dict[str, Any]] = [
            {"version": first + number, "author": "operator", "create_time": NOON, "body": b"%d" % number}
            for number in range(2)
        ]
        for each in put:
            await store.add_programme(connection, **each)
        assert await store.programme_head(connection) == first + 1
        assert dict(await store.lock_last_programme(connection) or {}) == put[1]
        assert dict(await store.programme(connection) or {}) == put[1]
        assert dict(await store.programme(connection, first) or {}) == put[0]
        assert await store.programme(connection, first + 2) is None


async def test_an_evaluation_goes_on_where_it_was_left_and_begins_again_for_a_newer_version(
    database: Database,
) -> None:
    scheme = fresh("scheme")

    async def mine(connection: Connection) -> store.Evaluation | None:
        found = await store.open_evaluations(connection, 1000)
        return next((each for each in found if each.subject_id == scheme), None)

    async with database.begin() as connection:
        await store.start_evaluation(connection, store.SCHEME, scheme, 1, NOON)
        first = await mine(connection)
        assert first == store.Evaluation(store.SCHEME, scheme, 1, store.BEFORE_ALL, 0, NOON)
        assert await store.advance_evaluation(connection, first, (7, "member"), 100)
        going = await mine(connection)
        assert going == replace(first, after=(7, "member"), done=100)
        assert not await store.advance_evaluation(connection, first, (5, "member"), 50)
        await store.start_evaluation(connection, store.SCHEME, scheme, 2, NOON + DAY)
        assert not await store.advance_evaluation(connection, going, (9, "member"), 100)
        again = await mine(connection)
        assert again == store.Evaluation(store.SCHEME, scheme, 2, store.BEFORE_ALL, 0, NOON + DAY)
        assert await store.advance_evaluation(connection, again, (1023, "z"), 5, end=NOON + DAY)
        assert await mine(connection) is None
        assert not await store.advance_evaluation(connection, again, (1023, "z"), 5)


# --- erasing a member ---------------------------------------------------------------------------------


async def test_of_an_erased_member_memberships_stay_and_what_it_is_and_where_it_was_goes(
    database: Database,
) -> None:
    member, other = fresh("member"), fresh("member")
    seat = a_seat("scheme", cell="39.9,116.4", distance_m=300, entry_source="poster")

    def profile(name: str) -> Profile:
        told = Profile(
            name,
            version=3,
            facts={"tier": "gold"},
            fact_versions={"tier": (1, 7), "card:plus": (1, 8)},
            offer_time=NOON,
            known=True,
        )
        tag = Tag(key="vip", value="yes", source="crm", set_time=NOON)
        order = KeptOrder(order_id="one", store_id="site", paid_time=NOON, amount_minor=5)
        stays = {seat.membership_id: seat}
        return replace(told, memberships=stays, tags={"vip": tag}, orders={"one": order})

    event = InboxKey(member, "groups", "points", fresh("event"), "POINTS", 11)
    answered = Answered(b"hash", b"an answer")
    for name in (member, other):
        await keep(
            database,
            profile(name),
            done=Done(
                new_answers={(name, "request"): answered}, new_events=[event] if name == member else []
            ),
        )
    async with database.begin() as connection:
        await store.lock(connection, Wanted(NOON, {member}))
        await bury(connection, member)
        assert await store.erase(connection, member) == store.Erased(1, 1, 1, 1, 0, 1)
    assert await whole(database, other) == profile(other)
    blank = replace(seat, cell="", distance_m=0, entry_source="")
    stays = {seat.membership_id: blank}
    assert await whole(database, member) == Profile(member, 3, memberships=stays, known=True)
    asked = {(member, "request"), (other, "request")}
    assert (await see(database, Wanted(NOON, {member, other}, requests=asked))).done.answers == {
        (member, "request"): Answered(b"hash", None),
        (other, "request"): answered,
    }
    async with database.begin() as connection:
        erased = await connection.fetch(
            "SELECT stream_seq FROM stream_erasures WHERE event_id = ANY($1)",
            [event.event_id, f"of {member}"],
        )
        assert {row["stream_seq"] for row in erased} == {11, 12}
        assert await store.erase(connection, member) == store.Erased(0, 0, 0, 0, 0, 0)


async def bury(connection: Connection, member: str) -> None:
    """A dead letter about a member, which is the first field of its body."""
    body = b"\x0a" + bytes([len(member)]) + member.encode() + b"and more"
    letter = Delivery("points.v1.TierChanged", body, "points", f"of {member}", "", "POINTS", 12)
    await store.DEAD_LETTERS.bury(connection, "groups", letter, GroupUnknown(group_id="grp"))
