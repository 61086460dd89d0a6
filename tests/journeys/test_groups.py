"""Groups among the others: from an order to a welcome bonus, from a tier to a group; time for replicas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
import pytest_asyncio
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from loyalty.groups.v1 import groups_events_pb2 as epb
from loyalty.groups.v1 import groups_service_pb2 as pb
from loyalty.orders.v1.orders_pb2 import Order
from loyalty.orders.v1.orders_service_pb2 import ReportOrderPaidRequest
from loyalty.points.v1 import points_service_pb2 as points_pb
from loyalty.referral.v1 import referral_events_pb2 as referral

from services.cli import clockwork
from services.cli.house import House
from services.groups import audit as of_groups
from services.points import audit as of_points
from tests.conftest import NOON, OpenHouse
from tests.database import ask
from tests.groups.calls import (
    a_scheme,
    close_site,
    groups_of,
    join,
    leave,
    members_of,
    open_group,
    put_scheme,
    seat,
    settle,
    stamp,
)
from tests.groups.town import ZONE
from tests.journeys.publisher import Publisher
from tests.journeys.test_other_services import rule
from tests.support import PROGRAMME, Groups, Points, apply_programme, defects, eventually, fresh, order

Told = TypeVar("Told", bound=Message)

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
SERVICES = ("points", "groups")
SETTLE = 60.0  # seconds
BONUS = 88  # points
IRON = 100  # growth
RULES: dict[str, Any] = PROGRAMME | {
    "tier_ladder": {"rolling_days": 30, "grace_days": 5, "tiers": [{"tier_id": "铁粉", "growth": IRON}]},
    "earn_rules": [
        *PROGRAMME["earn_rules"],
        rule("welcome", "activity.kind == 'group_joined'", fixed=BONUS),
    ],
}
LUNCH = {
    "entry_id": "lunch",
    "recurrence": "RECURRENCE_DAILY",
    "local_time": "12:30",
    "claim_minutes": 120,
    "benefit_code": "LUNCH",
    "text": "午餐券",
}


@pytest.fixture(scope="module")
def house(data: Path, open_house: OpenHouse) -> Iterator[House]:
    """Both services. In the end the books of both close, and neither has refused what the other told."""
    with open_house(data, SERVICES, test_clock=NOON) as house:
        apply_programme(house, RULES)
        with Groups(house) as groups:
            life = "facts.orders_total > 0 && facts.recency_days > 30 ? 'silent' : 'active'"
            rules = {"tag_rules": [{"key": "life", "expression": life}]}
            programme = ParseDict(rules, pb.Programme())
            request = pb.PutProgrammeRequest(request_id=fresh("put"), programme=programme)
            groups.call(groups.groups.PutProgramme, request)
        yield house
        for service, books in (("points", of_points), ("groups", of_groups)):
            report = asyncio.run(books.audit(house.database_url(service), stream_url=house.nats.url))
            assert report.clean, report.lines
            assert [row["reason"] for row in ask(house, service, "SELECT reason FROM dead_letters")] == []
        assert not defects(house)


@pytest.fixture(scope="module")
def groups(house: House) -> Iterator[Groups]:
    """A real channel into the house."""
    with Groups(house) as groups:
        yield groups


@pytest_asyncio.fixture
async def publisher(house: House) -> AsyncIterator[Publisher]:
    async with Publisher(house.nats.url, fresh("service")) as publisher:
        yield publisher


def told(groups: Groups, entity: str, kind: type[Told]) -> list[Told]:
    """What the groups service announced of a kind about a member or a group."""
    query = "SELECT body FROM outbox WHERE entity_key = $1 AND subject = $2 ORDER BY position"
    rows = ask(groups.house, "groups", query, entity, kind.DESCRIPTOR.full_name)
    return [kind.FromString(row["body"]) for row in rows]


def hears(groups: Groups, entity: str, kind: type[Told], many: int = 1) -> list[Told]:
    """The same, once it was announced as often."""
    eventually(lambda: len(told(groups, entity, kind)) >= many)
    return told(groups, entity, kind)


def move(groups: Groups, to: datetime) -> None:
    """Sets the clock, and waits until what fell due is done."""
    assert groups.house.clock is not None
    clockwork.move(groups.house.clock, to, SETTLE, groups.house.services)


def a_meal(groups: Groups, store_id: str, total_minor: int = 2000) -> Order:
    made = order(total_minor, groups.now)
    made.store_id = store_id
    return made


def pay(points: Points, member: str, what: Order) -> None:
    """Reports an order as paid, to whoever wants to know."""
    request = ReportOrderPaidRequest(member_id=member, request_id=fresh("paid"), order=what)
    points.call(points.orders.ReportOrderPaid, request)


def available(points: Points, member: str) -> int:
    request = points_pb.BatchGetBalancesRequest(member_ids=[member])
    balances = points.call(points.points.BatchGetBalances, request).balances
    return balances[0].available if balances else 0


def schemes_of(groups: Groups, member: str) -> set[str]:
    """The schemes in which a member has a seat."""
    return {one.membership.scheme_id for one in groups_of(groups, member)}


# --- from an order to the welcome ---------------------------------------------------------------------


def test_a_guest_is_offered_the_stores_group_joins_it_and_gets_the_welcome_bonus_once(
    groups: Groups, points: Points
) -> None:
    member, (_, [site]) = fresh("member"), settle(groups)
    scheme = put_scheme(groups, a_scheme(welcome="欢迎来到{group}", calendar=[LUNCH]))
    pay(points, member, a_meal(groups, site.site_id))
    offer, *_ = hears(groups, member, epb.EntryOffered)
    (offered,) = [one for one in offer.groups if one.scheme_id == scheme.scheme_id]
    assert (offered.site_id, offer.store_id) == (site.site_id, site.site_id)
    assigned = seat(groups, member, chosen_group_id=offered.group_id, entry_source=offer.scene)
    for _ in range(2):
        join(groups, member, assigned.group)
    (joined,) = hears(groups, member, epb.MemberJoined)
    assert (joined.entry_source, joined.welcome) == (offer.scene, "欢迎来到福利群")
    assert [one.benefit_code for one in joined.benefits] == ["LUNCH"]
    eventually(lambda: available(points, member) == 20 + BONUS)
    # Whoever goes and comes back is welcome, by another membership.
    leave(groups, member, assigned.group)
    (left,) = hears(groups, member, epb.MemberLeft)
    assert left.membership_id == joined.membership_id
    join(groups, member, assigned.group)
    eventually(lambda: available(points, member) == 20 + 2 * BONUS)


def test_who_is_moved_is_not_welcomed_twice(groups: Groups, points: Points) -> None:
    member, (_, [near, far]) = fresh("member"), settle(groups, 0, 1000)
    scheme = put_scheme(groups, a_scheme())
    first = seat(groups, member, scheme, home_site_id=near.site_id)
    join(groups, member, first.group)
    eventually(lambda: available(points, member) == BONUS)
    close_site(groups, near)
    (moved,) = hears(groups, member, epb.MemberMoved)
    assert (moved.from_group_id, moved.site_id) == (first.group.group_id, far.site_id)
    join(groups, member, moved.group_id)
    hears(groups, member, epb.MemberJoined, 2)
    pay(points, member, a_meal(groups, far.site_id))  # told after all that
    eventually(lambda: available(points, member) == BONUS + 20)


# --- from what is known to a group --------------------------------------------------------------------


def test_a_tier_reached_in_points_brings_a_seat_in_the_vip_group_and_a_quiet_month_another(
    groups: Groups, points: Points
) -> None:
    member = fresh("member")
    vip = [{"segment_id": "iron", "name": "铁粉", "expression": "tier == '铁粉'"}]
    quiet = [{"segment_id": "quiet", "name": "沉睡", "expression": "tags.life == 'silent'"}]
    of_vip, of_quiet = (
        put_scheme(
            groups, a_scheme("BY_TAG", segments=segments, name_pattern="{segment}群{seq}", capacity=50)
        )
        for segments in (vip, quiet)
    )
    pay(points, member, a_meal(groups, "nowhere", 100 * IRON))
    eventually(lambda: schemes_of(groups, member) == {of_vip.scheme_id})
    (assigned,) = told(groups, member, epb.MemberAssigned)
    assert (assigned.group_name, assigned.segment_id) == ("铁粉群", "iron")
    join(groups, member, assigned.group_id)
    # By time alone, though nobody touches the member.
    move(groups, groups.now + 32 * DAY)
    assert of_quiet.scheme_id in schemes_of(groups, member)
    (changed,) = told(groups, member, epb.TagsChanged)[1:]
    assert [(one.key, one.previous_value, one.value) for one in changed.changes] == [
        ("life", "active", "silent")
    ]


async def test_a_reward_that_is_a_seat_is_given_and_reported(groups: Groups, publisher: Publisher) -> None:
    member, reward_id, (_, [site]) = fresh("member"), fresh("reward"), settle(groups)
    scheme = put_scheme(groups, a_scheme(default_site_id=site.site_id))
    await publisher.publish(
        referral.RewardGranted(
            member_id=member,
            occur_time=stamp(groups.now),
            epoch=1,
            version=1,
            reward_id=reward_id,
            campaign_id="spring",
            campaign_version=1,
            step_id="first",
            round=1,
            attempt=1,
            role=referral.REWARD_ROLE_INVITER,
            group_entry=referral.GroupEntryReward(scheme_id=scheme.scheme_id),
        )
    )
    (fulfilled,) = await asyncio.to_thread(hears, groups, member, epb.RewardFulfilled)
    assert (fulfilled.reward_id, fulfilled.scheme_id) == (reward_id, scheme.scheme_id)
    assert await asyncio.to_thread(schemes_of, groups, member) == {scheme.scheme_id}


# --- time, for several replicas -----------------------------------------------------------------------


def test_with_three_replicas_each_occasion_comes_once_and_also_after_one_is_gone(
    house: House, groups: Groups
) -> None:
    replicas = [house.start_replica("groups") for _ in range(2)]
    for replica in replicas:
        house.wait_ready(replica)
    _, sites = settle(groups, 0, 1000, 2000)
    scheme = put_scheme(groups, a_scheme(calendar=[LUNCH]))
    opened = [open_group(groups, scheme, site_id=site.site_id) for site in sites]
    member = fresh("member")
    seat(groups, member, scheme, chosen_group_id=opened[0].group_id)
    noon = datetime.combine(groups.now.astimezone(ZONE).date() + DAY, NOON.astimezone(ZONE).time(), ZONE)
    for day in range(3):
        if day == 2:
            house.process(replicas[0]).stop()
        move(groups, noon + day * DAY + HOUR)
        for group in opened:
            occasions = [one.occasion_id for one in told(groups, group.group_id, epb.BenefitDue)]
            assert len(occasions) == len(set(occasions)) == day + 1
    assert len(told(groups, member, epb.SeatLapsed)) == 1
    assert members_of(groups, opened[0]) == []
