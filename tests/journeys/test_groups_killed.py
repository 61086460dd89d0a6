"""The groups service is killed in the middle of its work, and is away while something falls due."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from loyalty.groups.v1 import groups_events_pb2 as epb
from loyalty.groups.v1 import groups_service_pb2 as pb
from loyalty.orders.v1.orders_pb2 import OrderPaid

from services.cli import clockwork
from services.cli.house import House
from tests.chaos.groups_books import MEMBERS, Register, check_counts, told
from tests.chaos.journal import POLL, RETRIED, SETTLE_TIMEOUT, Client, owner, snapshot, until
from tests.chaos.levers import kill, lapse, redeliver, start, stop
from tests.conftest import NOON, OpenHouse
from tests.database import ask
from tests.groups.calls import (
    a_scheme,
    at,
    close_site,
    flash,
    instant,
    join,
    listed,
    open_group,
    put_scheme,
    read_group,
    seat,
    settle,
    stamp,
)
from tests.groups.conftest import sound
from tests.groups.town import ZONE
from tests.journeys.publisher import Publisher
from tests.support import TIMEOUT, Groups, eventually, fresh, order

RACERS = int(os.environ.get("RACERS", "1000"))
AT_ONCE = 64  # calls
PAUSE = 0.5  # seconds between attempts to make the service do something
DEATHS = max(1, RACERS // 5_000)  # while the crowd is seated, and as many while it comes and goes
SEATS = 100  # in a group of the crowd's
QUOTA = 3  # members that may be moved in a day
# Before a move is kept, once it is, and once it is told: what is between them is like one of these here.
POINTS = ("before_commit", "after_commit", "relay_after_publish")
GUESTS = QUOTA * (len(POINTS) + 2)  # that are to be moved: there are some left at each death
DAY, HOUR, MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)
LUNCH = {
    "entry_id": "lunch",
    "recurrence": "RECURRENCE_DAILY",
    "local_time": "12:30",
    "claim_minutes": 120,
    "benefit_code": "LUNCH",
}

Asked = tuple[str, Any]
"""A method, and a request of it."""


@pytest.fixture(scope="module")
def house(data: Path, open_house: OpenHouse) -> Iterator[House]:
    """A house whose groups service may be killed. In the end its books close."""
    with sound(open_house(data, ("groups",), test_clock=NOON)) as house:
        with Groups(house) as groups:
            programme = pb.Programme(moves_per_day=QUOTA)
            request = pb.PutProgrammeRequest(request_id=fresh("put"), programme=programme)
            groups.call(groups.groups.PutProgramme, request)
        yield house


def events_of(house: House, *entities: str) -> list[Any]:
    """What was announced about members or groups, in order."""

    async def read() -> list[Any]:
        connection = await owner(house, "groups")
        try:
            return [event for _, event, _ in await told(connection, entities)]
        finally:
            await connection.close()

    return asyncio.run(read())


def kinds(house: House, *entities: str) -> list[str]:
    """What kinds of events these were."""
    return [event.DESCRIPTOR.name for event in events_of(house, *entities)]


# --- a site that closes -------------------------------------------------------------------------------


def test_a_closed_site_is_emptied_within_each_days_quota_though_the_service_dies_meanwhile(
    house: House,
) -> None:
    assert house.clock is not None
    guests, day = [fresh("guest") for _ in range(GUESTS)], house.clock.now() + DAY
    house.clock.set(day)  # of whose quota nothing is used
    with Groups(house) as groups:
        _, (near, far) = settle(groups, 0, 1000)
        scheme = put_scheme(groups, a_scheme(seat_hold_minutes=44_640))
        for number, guest in enumerate(guests):
            assigned = seat(groups, guest, scheme, home_site_id=near.site_id)
            if number % 2:
                join(groups, guest, assigned.group)
        left = [group.group_id for group in listed(groups, scheme_id=scheme.scheme_id)]
        close_site(groups, near)
        eventually(lambda: len(moves(house, guests)) == QUOTA)
    for point in POINTS:
        asyncio.run(stop(house, "groups"))
        asyncio.run(lapse(house, "groups"))
        process, day = house.start_service("groups", failpoint=point), day + DAY
        house.clock.set(day)
        while process.poll() is None:
            provoke(house, guests[0])
            with suppress(TimeoutExpired):
                process.wait(PAUSE)
        assert process.poll() == 128 + 9
    asyncio.run(start(house, "groups"))
    asyncio.run(redeliver(house, service="groups"))
    while len(moves(house, guests)) < GUESTS:
        day += DAY
        clockwork.move(house.clock, day, SETTLE_TIMEOUT, ["groups"])
    by_day = Counter(instant(move.occur_time) for move in moves(house, guests))
    assert max(by_day.values()) == QUOTA
    for number, guest in enumerate(guests):
        came = ["MemberJoined"] if number % 2 else []
        assert kinds(house, guest) == ["MemberAssigned", *came, "MemberMoved"]
    with Groups(house) as groups:
        ended = [read_group(groups, group_id) for group_id in left]
        assert {(one.status, one.seats_taken) for one in ended} == {(pb.GROUP_STATUS_DISSOLVED, 0)}
        there = listed(groups, scheme_id=scheme.scheme_id, site_id=far.site_id)
        assert sum(group.seats_taken for group in there) == GUESTS


def moves(house: House, members: Sequence[str]) -> list[epb.MemberMoved]:
    return [event for event in events_of(house, *members) if isinstance(event, epb.MemberMoved)]


def provoke(house: House, member: str) -> None:
    """Has the service answer a call and apply an event, if it can."""

    async def publish() -> None:
        async with Publisher(house.nats.url, "elsewhere") as publisher:
            assert house.clock is not None
            await publisher.publish(OrderPaid(member_id=member, order=order(100, house.clock.now())))

    with Groups(house) as groups, suppress(grpc.RpcError):
        groups.groups.GetMemberTags(pb.GetMemberTagsRequest(member_id=member), timeout=1)
    asyncio.run(publish())


# --- a crowd ------------------------------------------------------------------------------------------


async def test_a_crowd_keeps_its_seats_though_the_service_dies_again_and_again(house: House) -> None:
    """Members get seats at one site; then they come, stay away, come elsewhere unasked, or leave again."""
    dice = random.Random(53)
    members = [fresh("racer") for _ in range(RACERS)]
    region, scheme = await asyncio.to_thread(_a_place, house)
    asked: list[Asked] = [
        (
            "AssignMember",
            pb.AssignMemberRequest(
                member_id=member, request_id="seat", scheme_id=scheme.scheme_id, location=at(region, 10)
            ),
        )
        for member in members
    ]
    answers = await done(house, asked)
    seats = {
        member: answer.assignments[0].group.group_id for member, answer in zip(members, answers, strict=True)
    }
    filled = Counter(seats.values())
    assert sorted(filled.values(), reverse=True) == _in_groups(RACERS)
    assert house.clock is not None
    plans = {
        member: _plan(member, seats[member], list(filled), dice, house.clock.now()) for member in members
    }
    await done(house, [asked for plan in plans.values() for asked in plan])
    house.clock.set(house.clock.now() + DAY + HOUR)
    await until(partial(_settled, house))
    connection = await owner(house, "groups")
    try:
        async with snapshot(connection):
            groups = await connection.fetch("SELECT * FROM groups WHERE scheme_id = $1", scheme.scheme_id)
            seated = await connection.fetch(MEMBERS, [row["group_id"] for row in groups])
            events = [event for _, event, _ in await told(connection, members)]
    finally:
        await connection.close()
    register = Register({row["group_id"]: row["room"] for row in groups})
    register.follow(events)
    check_counts(groups, seated, register, set(members))
    expected = {member: plan[-1][1].group_id for member, plan in plans.items() if _stays(plan)}
    assert {row["member_id"]: row["group_id"] for row in seated} == expected
    assert len(seated) == len(expected)
    lapsed = Counter(event.member_id for event in events if isinstance(event, epb.SeatLapsed))
    assert {member for member, plan in plans.items() if not plan} <= lapsed.keys()
    assert any(event.overbooked for event in events if isinstance(event, epb.MemberJoined))


def _a_place(house: House) -> tuple[tuple[float, float], pb.Scheme]:
    """A region with a site, and a scheme of groups of a hundred seats."""
    with Groups(house) as groups:
        region, _ = settle(groups, 0)
        return region, put_scheme(groups, a_scheme(capacity=SEATS + 20, headroom=20))


async def _settled(house: House) -> bool:
    assert house.clock is not None
    return house.clock.all_settled(["groups"])


def _in_groups(members: int) -> list[int]:
    """How many are in each group, where each is filled before the next one is."""
    return [SEATS] * (members // SEATS) + ([members % SEATS] if members % SEATS else [])


def _plan(
    member: str, group_id: str, others: Sequence[str], dice: random.Random, now: datetime
) -> Sequence[Asked]:
    """What a member does who has a seat: half of them come, the others do something else."""
    told: dict[str, Any] = {"member_id": member, "occur_time": stamp(now)}
    join: Asked = ("JoinGroup", pb.JoinGroupRequest(**told, request_id="join", group_id=group_id))
    leave: Asked = ("LeaveGroup", pb.LeaveGroupRequest(**told, request_id="leave", group_id=group_id))
    elsewhere = dice.choice(others)
    stray: Asked = ("JoinGroup", pb.JoinGroupRequest(**told, request_id="stray", group_id=elsewhere))
    return dice.choices([[join], [], [stray], [leave], [join, stray]], [10, 3, 3, 2, 2])[0]


def _stays(plan: Sequence[Asked]) -> bool:
    return bool(plan) and plan[-1][0] == "JoinGroup"


async def done(house: House, asked: Sequence[Asked]) -> list[Any]:
    """Each request's answer, many at a time and of a member in order, while the service dies in between."""
    answers: dict[int, Message] = {}
    mine: dict[str, list[int]] = {}
    for number, (_, request) in enumerate(asked):
        mine.setdefault(request.member_id, []).append(number)
    turns = iter(mine.values())
    client = Client([house.describe()["groups"]["grpc"]], "groups")

    async def work() -> None:
        for numbers in turns:
            for number in numbers:
                answers[number] = await _insist(client, *asked[number])

    async def die() -> None:
        for death in range(DEATHS):
            many = (death + 1) * len(asked) // (DEATHS + 1)

            async def reached(many: int = many) -> bool:
                return len(answers) >= many

            await until(reached, 10 * SETTLE_TIMEOUT)
            await kill(house, "groups")
            await start(house, "groups")

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(die())
            for _ in range(AT_ONCE):
                group.create_task(work())
    finally:
        await client.close()
    return [answers[number] for number in range(len(asked))]


async def _insist(client: Client, method: str, request: Any) -> Message:
    async with asyncio.timeout(SETTLE_TIMEOUT):
        while True:
            try:
                answer: Message = await client.method(method, 0)(request, timeout=TIMEOUT)
            except grpc.aio.AioRpcError as error:
                if error.code() not in RETRIED:
                    raise
                await asyncio.sleep(POLL)
            else:
                return answer


# --- while nobody is there ----------------------------------------------------------------------------


def test_what_fell_due_while_the_service_was_down_is_done_once_after_its_start(house: House) -> None:
    assert house.clock is not None
    noon = datetime.combine(
        house.clock.now().astimezone(ZONE).date() + DAY, NOON.astimezone(ZONE).time(), ZONE
    )
    house.clock.set(noon)
    ann, ben = fresh("ann"), fresh("ben")
    with Groups(house) as groups:
        _, [site] = settle(groups)
        king = put_scheme(groups, a_scheme(calendar=[LUNCH]))
        group = open_group(groups, king, site_id=site.site_id)
        sale = flash(groups, put_scheme(groups, a_scheme("FLASH", capacity=9)), minutes=20, close=50)
        join(groups, ann, sale)
        seat(groups, ben, chosen_group_id=sale.group_id)
    _while_down(house, noon + HOUR)
    eventually(lambda: kinds(house, sale.group_id) == ["GroupOpened", "GroupDissolved"])
    eventually(lambda: kinds(house, ben) == ["MemberAssigned", "SeatLapsed"])
    eventually(lambda: kinds(house, ann) == ["MemberJoined", "MemberLeft"])
    *_, left = events_of(house, ann)
    assert left.reason == epb.MEMBER_LEAVE_REASON_GROUP_DISSOLVED
    eventually(lambda: kinds(house, group.group_id) == ["GroupOpened", "BenefitDue"])
    # What can no longer be claimed is not announced, and what comes then is.
    _while_down(house, noon + 3 * DAY - 2 * HOUR)
    house.clock.set(noon + 3 * DAY + HOUR)
    eventually(lambda: kinds(house, group.group_id) == ["GroupOpened", "BenefitDue", "BenefitDue"])
    clocks: Mapping[str, datetime] = {
        event.occasion_id: instant(event.claim_until_time)
        for event in events_of(house, group.group_id)
        if isinstance(event, epb.BenefitDue)
    }
    until_claimed = noon + 30 * MINUTE + 2 * HOUR
    assert sorted(clocks.values()) == [until_claimed, until_claimed + 3 * DAY]
    assert ask(house, "groups", "SELECT reason FROM dead_letters") == []


def _while_down(house: House, to: datetime) -> None:
    """Kills the service, moves the clock, and starts it."""
    assert house.clock is not None
    asyncio.run(kill(house, "groups"))
    house.clock.set(to)
    asyncio.run(start(house, "groups"))
