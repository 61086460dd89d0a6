"""The longest chain: from an order of somebody who was invited to a seat among the best, and back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from loyalty.cards.v1 import cards_events_pb2 as of_cards
from loyalty.groups.v1 import groups_events_pb2 as of_groups
from loyalty.groups.v1 import groups_service_pb2 as groups_pb
from loyalty.orders.v1.orders_pb2 import Refund
from loyalty.orders.v1.orders_service_pb2 import ReportOrderPaidRequest, ReportOrderRefundedRequest
from loyalty.orders.v1.orders_service_pb2_grpc import OrdersServiceStub
from loyalty.points.v1 import points_events_pb2 as of_points
from loyalty.referral.v1 import referral_events_pb2 as of_referral
from loyalty.referral.v1 import referral_service_pb2 as pb

from services.cards import audit as cards_books
from services.cli.house import House
from services.groups import audit as groups_books
from services.points import audit as points_books
from services.referral import audit as referral_books
from tests.cards import calls as card_calls
from tests.cards.till import product
from tests.chaos.journal import CHANNEL, RETRIED, SETTLE_TIMEOUT, until
from tests.chaos.levers import broker, lapse, patiently, start, stop
from tests.conftest import NOON, OpenHouse
from tests.database import ask
from tests.groups.calls import a_scheme, put_scheme, settle
from tests.journeys.test_other_services import rule
from tests.points.calls import kinds
from tests.referral import calls
from tests.support import (
    PROGRAMME,
    Cards,
    Groups,
    Points,
    Referral,
    apply_programme,
    defects,
    eventually,
    fresh,
    order,
)

Told = TypeVar("Told", bound=Message)

SERVICES = ("points", "cards", "groups", "referral")
AUDITS = (points_books.audit, cards_books.audit, groups_books.audit, referral_books.audit)
REWARD = 1_000  # points
IRON = 100  # growth, which a card brings
RULES: dict[str, Any] = PROGRAMME | {
    "tier_ladder": {"rolling_days": 30, "grace_days": 5, "tiers": [{"tier_id": "铁粉", "growth": IRON}]},
    "earn_rules": [
        *PROGRAMME["earn_rules"],
        rule("card", "activity.kind == 'card_activated'", fixed=IRON, unit="UNIT_GROWTH"),
    ],
}
KING = product(code="king", period="P30D", price_minor=1_900)
LADDER = [
    {
        "step_id": "points",
        "at": 1,
        "reward": calls.points(REWARD, 100),
        "invitee_reward": {"group_entry": {"scheme_id": "welcome"}, "cost_minor": 10},
    },
    {"step_id": "card", "each_from": 1, "reward": {"card": {"plan_id": "king"}, "cost_minor": 500}},
]
# Where services die, each at another of these; in every other turn, which takes half as long as all and has
# each die on both sides of a commit or of a message.
POINTS_OF_DEATH = ("before_commit", "after_commit", "relay_after_publish", "consumer_before_ack")
TURNS = range(0, len(POINTS_OF_DEATH), 2)

Pair = tuple[str, str]
"""An inviter, and whom it brought."""

# What is told of an inviter on the way, and by whom; the last comes last. Its invitee is welcomed, too.
WAY: Sequence[tuple[str, type[Message], int]] = (
    ("referral", of_referral.StepReached, 2),
    ("referral", of_referral.RewardGranted, 2),
    ("referral", of_referral.RewardFulfilled, 2),
    ("cards", of_cards.CardActivated, 1),
    ("points", of_points.PointsPosted, 2),
    ("points", of_points.TierChanged, 1),
    ("groups", of_groups.TagsChanged, 1),
    ("groups", of_groups.MemberAssigned, 1),
)
WELCOME: Sequence[tuple[str, type[Message], int]] = (
    ("referral", of_referral.InviteeQualified, 1),
    ("referral", of_referral.RewardGranted, 1),
    ("groups", of_groups.MemberAssigned, 1),
    ("referral", of_referral.RewardFulfilled, 1),
)


@pytest.fixture(scope="module")
def house(data: Path, open_house: OpenHouse) -> Iterator[House]:
    """All services. In the end the books of all close, and none has refused what another told."""
    with open_house(data, SERVICES, test_clock=NOON) as house:
        apply_programme(house, RULES)
        with Cards(house) as cards:
            KING.ClearField("version")
            card_calls.put(cards, KING)
        with Groups(house) as groups:
            tags = {"tag_rules": [{"key": "fan", "expression": "tier == '铁粉' ? 'iron' : ''"}]}
            programme = ParseDict(tags, groups_pb.Programme())
            request = groups_pb.PutProgrammeRequest(request_id=fresh("put"), programme=programme)
            groups.call(groups.groups.PutProgramme, request)
            vip = [{"segment_id": "iron", "name": "铁粉", "expression": "tags.fan == 'iron'"}]
            put_scheme(groups, a_scheme("BY_TAG", segments=vip, name_pattern="{segment}群{seq}", capacity=50))
            _, [site] = settle(groups)
            put_scheme(groups, a_scheme(scheme_id="welcome", default_site_id=site.site_id, capacity=50))
        yield house
        asyncio.run(_all_close(house))
        assert not defects(house)


async def _all_close(house: House) -> None:
    audits = (
        audit(house.database_url(service), stream_url=house.nats.url)
        for service, audit in zip(SERVICES, AUDITS, strict=True)
    )
    for report in await asyncio.gather(*audits):
        assert report.clean, report.lines
    for service in SERVICES:
        letters = await asyncio.to_thread(ask, house, service, "SELECT reason FROM dead_letters")
        assert [row["reason"] for row in letters] == []


def told(house: House, service: str, member: str, kind: type[Told]) -> list[Told]:
    """What a service announced of a kind about a member, each once."""
    query = "SELECT body FROM outbox WHERE entity_key = $1 AND subject = $2 ORDER BY position"
    rows = ask(house, service, query, member, kind.DESCRIPTOR.full_name)
    return [kind.FromString(row["body"]) for row in rows]


def campaign_of(house: House, **said: Any) -> pb.Campaign:
    """A campaign of the test's own that rewards a first order with points and a card."""
    budget = {"currency_code": "CNY", "budget_minor": 1_000_000}
    with Referral(house) as referral:
        return calls.made(referral, **{"ladder": LADDER, **budget, **said})


def bring(house: House, campaign: pb.Campaign, pairs: Sequence[Pair]) -> None:
    """Binds each invitee to its inviter."""
    with Referral(house) as referral:
        for inviter, invitee in pairs:
            calls.bring(referral, campaign, inviter, invitee)


def an_order(house: House, member: str) -> ReportOrderPaidRequest:
    assert house.clock is not None
    what = order(3_000, house.clock.now(), order_id=f"order-{member}")
    return ReportOrderPaidRequest(member_id=member, request_id="paid", order=what)


def arrived(house: House, pairs: Sequence[Pair]) -> bool:
    """Whether everybody has a seat, and whoever handed a reward over was heard: each just once."""
    return all(
        len(told(house, service, member, kind)) == many
        for inviter, invitee in pairs
        for member, way in ((inviter, WAY), (invitee, WELCOME))
        for service, kind, many in way
    )


# --- there --------------------------------------------------------------------------------------------


def test_an_order_of_an_invitee_brings_its_inviter_a_seat_among_the_best(house: House) -> None:
    campaign, inviter, invitee = campaign_of(house), fresh("ann"), fresh("ben")
    bring(house, campaign, [(inviter, invitee)])
    begun = time.monotonic()
    with Points(house) as points:
        points.call(points.orders.ReportOrderPaid, an_order(house, invitee))
    eventually(lambda: bool(told(house, "groups", inviter, of_groups.MemberAssigned)))
    print(f"from the first call to the last event: {time.monotonic() - begun:.2f} s")
    eventually(lambda: arrived(house, [(inviter, invitee)]))
    (qualified,) = told(house, "referral", invitee, of_referral.InviteeQualified)
    assert (qualified.inviter_member_id, qualified.reference_id) == (inviter, f"order-{invitee}")
    (assigned,) = told(house, "groups", inviter, of_groups.MemberAssigned)
    assert (assigned.group_name, assigned.segment_id) == ("铁粉群", "iron")
    with Points(house) as points:
        balance = points.balance(inviter)
    assert (balance.available, balance.growth, balance.tier) == (REWARD, IRON, "铁粉")
    with Referral(house) as referral:
        rewards = calls.rewards(referral, inviter)
    assert {one.status for one in rewards} == {pb.REWARD_STATUS_FULFILLED}


@pytest.mark.parametrize("turn", TURNS)
async def test_whoever_dies_on_the_way_it_is_walked_once(house: House, turn: int) -> None:
    campaign = await asyncio.to_thread(campaign_of, house)
    pairs = [(fresh("ann"), fresh("ben")) for _ in range(4)]
    await asyncio.to_thread(bring, house, campaign, pairs)
    deaths = [
        (service, POINTS_OF_DEATH[(turn + number) % len(POINTS_OF_DEATH)])
        for number, service in enumerate(SERVICES)
    ]
    await asyncio.gather(*(_arm(house, service, point) for service, point in deaths))
    begun = time.monotonic()
    deaths_and_calls = [_die_and_come_back(house, service) for service in SERVICES]
    await asyncio.gather(_all_pay(house, [invitee for _, invitee in pairs]), *deaths_and_calls)
    await until(lambda: asyncio.to_thread(arrived, house, pairs))
    print(f"with four deaths on the way: {time.monotonic() - begun:.2f} s")
    await asyncio.to_thread(_walked_once, house, pairs)


def _walked_once(house: House, pairs: Sequence[Pair]) -> None:
    with Points(house) as points:
        for inviter, _ in pairs:
            assert kinds(points, inviter) == "EARN EARN"
            assert points.balance(inviter).available == REWARD


async def _arm(house: House, service: str, point: str) -> None:
    """Has a service die at a point, maybe of the first thing that it does."""
    await stop(house, service)
    await lapse(house, service)
    await asyncio.to_thread(house.start_service, service, failpoint=point)


async def _die_and_come_back(house: House, service: str) -> None:
    assert await asyncio.to_thread(house.process(service).wait, SETTLE_TIMEOUT) == 128 + 9
    await start(house, service)
    await patiently(lambda: _redeliver(house, service))


async def _redeliver(house: House, service: str) -> None:
    """Has JetStream deliver again at once what a service left unacknowledged."""
    async with broker(house) as client:
        stream = client.jetstream()
        for info in await stream.streams_info():
            for consumer in await stream.consumers_info(info.config.name):
                if consumer.name == service:
                    consumer.config.ack_wait = 1.0
                    await stream.add_consumer(info.config.name, consumer.config)


async def _all_pay(house: House, members: Sequence[str]) -> None:
    """Each member pays; whoever is not answered asks again."""
    async with grpc.aio.insecure_channel(house.describe()["points"]["grpc"], options=CHANNEL) as channel:
        report = OrdersServiceStub(channel).ReportOrderPaid

        async def pays(member: str) -> None:
            async with asyncio.timeout(SETTLE_TIMEOUT):
                while True:
                    try:
                        await report(an_order(house, member), timeout=5)
                    except grpc.aio.AioRpcError as error:
                        if error.code() not in RETRIED:
                            raise
                        await asyncio.sleep(0.05)
                    else:
                        return

        await asyncio.gather(*(pays(member) for member in members))


# --- and back -----------------------------------------------------------------------------------------


def test_an_order_given_back_in_time_takes_everything_back_and_what_was_spent_is_owed(house: House) -> None:
    campaign, inviter = campaign_of(house), fresh("ann")
    first, second = fresh("first"), fresh("second")
    bring(house, campaign, [(inviter, first), (inviter, second)])
    with Points(house) as points, Referral(house) as referral:
        points.call(points.orders.ReportOrderPaid, an_order(house, first))
        eventually(lambda: arrived(house, [(inviter, first)]))
        points.redeem(inviter, 600)
        refund = Refund(order_id=f"order-{first}", refund_id="refund-1", all=True)
        refund.refund_time.FromDatetime(points.now)
        report = ReportOrderRefundedRequest(member_id=first, request_id="refunded", refund=refund)
        for _ in range(2):
            points.call(points.orders.ReportOrderRefunded, report)
        eventually(lambda: kinds(points, inviter).endswith("REVERSE"))
        balance = points.balance(inviter)
        assert (balance.available, balance.owed) == (0, 600)
        eventually(lambda: len(told(house, "cards", inviter, of_cards.CardRefunded)) == 1)
        eventually(lambda: len(told(house, "groups", first, of_groups.SeatLapsed)) == 1)
        rewards = calls.rewards(referral, inviter)
        assert {one.status for one in rewards} == {pb.REWARD_STATUS_CLAWED_BACK}
        assert calls.progress(referral, campaign, inviter).qualified == 0
        # Whoever brings another is rewarded again, and pays first what it owes.
        points.call(points.orders.ReportOrderPaid, an_order(house, second))
        eventually(lambda: points.balance(inviter).available == REWARD - 600)
        assert points.balance(inviter).owed == 0
        attempts = sorted(
            (one.attempt, one.status) for one in calls.rewards(referral, inviter) if one.step_id == "points"
        )
        assert [attempt for attempt, _ in attempts] == [1, 2]
        eventually(lambda: len(told(house, "referral", inviter, of_referral.RewardFulfilled)) == 4)
