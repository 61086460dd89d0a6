"""Tiers as other teams hear of them: reached at once, judged anew when their time is over."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from loyalty.points.v1 import points_service_pb2 as pb
from loyalty.points.v1.points_events_pb2 import (
    TIER_CHANGE_REASON_DEMOTED,
    TIER_CHANGE_REASON_PROMOTED,
    TIER_CHANGE_REASON_RENEWED,
    PointsPosted,
    TierChanged,
)

from services.cli import clockwork
from services.cli.house import House
from services.points.audit import audit
from services.points.domain.ledger import Unit
from tests.chaos.listener import Listener
from tests.conftest import NOON, OpenHouse
from tests.filling import gift, post
from tests.support import PROGRAMME, Points, apply_programme, defects, fresh, order

SHANGHAI = ZoneInfo("Asia/Shanghai")
WINDOW, GRACE = 30, 5  # days
IRON, DEAR = 100, 300  # growth
LADDER = {
    "rolling_days": WINDOW,
    "grace_days": GRACE,
    "tiers": [{"tier_id": "铁粉", "growth": IRON}, {"tier_id": "挚爱粉", "growth": DEAR}],
}
SETTLE = 60.0  # seconds


@pytest.fixture(scope="module")
def house(data: Path, open_house: OpenHouse) -> Iterator[House]:
    """A house of its own: its clock goes on and on."""
    with open_house(data, test_clock=NOON) as house:
        apply_programme(house, PROGRAMME | {"tier_ladder": LADDER})
        yield house
        report = asyncio.run(audit(house.database_url("points")))
        assert report.clean, report.lines
        assert not defects(house)


def move(points: Points, to: datetime) -> None:
    assert points.house.clock is not None
    clockwork.move(points.house.clock, to, SETTLE, points.house.services)


def end_of(at: datetime, days: int = WINDOW + GRACE) -> datetime:
    """When a tier reached at an instant ends, grace included."""
    day = at.astimezone(SHANGHAI).date() + timedelta(days=days)
    return datetime(day.year, day.month, day.day, tzinfo=SHANGHAI)


def grow(points: Points, member: str, growth: int) -> pb.Transaction:
    return points.earn(member, order(100 * growth, points.now))


async def changes(points: Points, member: str, many: int) -> list[tuple[Any, ...]]:
    """What was told of the member's tier."""
    listener = Listener(points.house.nats.url)
    await listener.hear(lambda: len(listener.about(member, TierChanged)) >= many)
    return [
        (
            *(each.from_tier, each.to_tier, each.reason, each.growth),
            each.occur_time.ToDatetime(SHANGHAI),
            each.valid_until_time.ToDatetime(SHANGHAI) if each.HasField("valid_until_time") else None,
        )
        for each in listener.about(member, TierChanged)
    ]


async def test_a_tier_is_told_as_soon_as_its_growth_is_reached(points: Points) -> None:
    member, at = fresh("member"), points.now
    grow(points, member, IRON - 1)
    grow(points, member, 1)
    assert (points.balance(member).tier, points.balance(member).growth) == ("铁粉", IRON)
    grow(points, member, DEAR - IRON)
    expected = [
        ("", "铁粉", TIER_CHANGE_REASON_PROMOTED, IRON, at, end_of(at)),
        ("铁粉", "挚爱粉", TIER_CHANGE_REASON_PROMOTED, DEAR, at, end_of(at)),
    ]
    assert await changes(points, member, 2) == expected
    assert points.balance(member).tier_until_time.ToDatetime(SHANGHAI) == end_of(at)


async def test_a_change_is_told_after_the_transaction_that_made_it(points: Points) -> None:
    member = fresh("member")
    grow(points, member, DEAR)  # two rungs in one step
    grow(points, member, 1)
    listener = Listener(points.house.nats.url)
    await listener.hear(lambda: len(listener.about(member, PointsPosted)) >= 2)
    told = [event for event in listener.events.values() if event.member_id == member]
    assert [type(event).__name__ for event in told] == ["PointsPosted", "TierChanged", "PointsPosted"]
    assert [event.version for event in told] == [1, 2, 3]
    assert told[1].to_tier == "挚爱粉"
    assert points.balance(member).version == 3


async def test_a_tier_falls_at_the_end_of_its_grace_though_nobody_touches_the_member(points: Points) -> None:
    member = fresh("member")
    grow(points, member, IRON - 1)
    move(points, points.now + timedelta(days=WINDOW - 1))
    at = points.now
    grow(points, member, 1)
    move(points, end_of(at) - timedelta(seconds=1))
    assert points.balance(member).tier == "铁粉"
    move(points, end_of(at))
    assert points.balance(member).tier == ""
    assert not points.balance(member).HasField("tier_until_time")
    _, fallen = await changes(points, member, 2)
    assert fallen == ("铁粉", "", TIER_CHANGE_REASON_DEMOTED, 1, end_of(at), None)


async def test_a_tier_falls_no_lower_than_the_growth_of_its_last_window_is_good_for(points: Points) -> None:
    member = fresh("member")
    grow(points, member, DEAR - IRON)
    move(points, points.now + timedelta(days=WINDOW - 1))
    at = points.now
    grow(points, member, IRON)
    move(points, end_of(at))
    *_, fallen = await changes(points, member, 3)
    ends = end_of(at, 2 * WINDOW + GRACE)
    assert fallen == ("挚爱粉", "铁粉", TIER_CHANGE_REASON_DEMOTED, IRON, end_of(at), ends)


async def test_a_tier_that_was_earned_again_is_renewed(points: Points) -> None:
    member, at = fresh("member"), points.now
    grow(points, member, IRON)
    move(points, at + timedelta(days=10))
    grow(points, member, IRON)
    move(points, end_of(at))
    _, renewed = await changes(points, member, 2)
    until = end_of(at, 2 * WINDOW + GRACE)
    assert renewed[:3] == ("铁粉", "铁粉", TIER_CHANGE_REASON_RENEWED)
    assert renewed[4:] == (end_of(at), until)
    assert points.balance(member).tier == "铁粉"
    move(points, until)
    *_, fallen = await changes(points, member, 3)
    assert fallen == ("铁粉", "", TIER_CHANGE_REASON_DEMOTED, 0, until, None)


async def test_who_rose_meanwhile_keeps_the_higher_tier_for_its_own_time(points: Points) -> None:
    many, at = [fresh("member") for _ in range(300)], points.now
    await post(points.house, [gift(member, IRON, Unit.GROWTH) for member in many])
    move(points, at + timedelta(days=20))
    rose = points.now
    await post(points.house, [gift(member, DEAR, Unit.GROWTH) for member in many])
    move(points, end_of(at))  # when the lower one would have ended
    assert {points.balance(member).tier for member in many[:20]} == {"挚爱粉"}
    move(points, end_of(rose))
    for member in (many[0], many[-1]):
        told = await changes(points, member, 3)
        assert [each[:2] for each in told] == [("", "铁粉"), ("铁粉", "挚爱粉"), ("挚爱粉", "挚爱粉")]
        assert [each[4] for each in told] == [at, rose, end_of(rose)]


async def test_growth_that_is_taken_back_costs_the_tier_only_when_its_time_is_over(points: Points) -> None:
    member, at = fresh("member"), points.now
    earned = grow(points, member, IRON)
    points.call(
        points.points.ReverseTransaction,
        pb.ReverseTransactionRequest(
            member_id=member, request_id=fresh("reverse"), transaction_id=earned.transaction_id
        ),
    )
    assert (points.balance(member).tier, points.balance(member).growth) == ("铁粉", 0)
    move(points, end_of(at))
    assert points.balance(member).tier == ""
    assert len(await changes(points, member, 2)) == 2
