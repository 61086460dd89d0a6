"""What others tell reaches the groups once, however often it comes; what is nobody's here is left aside."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from loyalty.cards.v1 import cards_events_pb2 as cards
from loyalty.groups.v1 import groups_events_pb2 as epb
from loyalty.orders.v1.orders_pb2 import Order, OrderPaid, OrderRefunded, Refund
from loyalty.points.v1 import points_events_pb2 as points
from loyalty.referral.v1 import referral_events_pb2 as referral

from services.chassis.consumer import Outcome
from services.chassis.database import Database
from services.chassis.ids import bucket
from services.cli.servers import Postgres
from services.groups.domain.profile import EVERYTHING, KeptOrder, MembershipStatus
from services.groups.subscriptions import STREAMS
from tests.groups.clockwork import Clockwork
from tests.groups.town import make_database, scheme, shop
from tests.support import fresh

DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def town_url(groups_server: Postgres) -> str:
    """A database of the module's own: sites and schemes are everybody's."""
    return make_database(groups_server)


@pytest.fixture
async def town(town_url: str) -> AsyncIterator[Clockwork]:
    """A town of two shops, in which it is NOON."""
    database = await Database.open(town_url, size=4, name="test")
    town = Clockwork(database)
    await town.put_sites(shop("gate", 0), shop("mill", 2000))
    yield town
    await database.close()


def reasons(outcomes: Sequence[Outcome]) -> list[str]:
    """Why events were refused."""
    return [outcome.reason if outcome else "" for outcome in outcomes]


async def tags(town: Clockwork, member: str) -> dict[str, str]:
    return {key: tag.value for key, tag in (await town.profile(member)).tags.items()}


# --- orders -------------------------------------------------------------------------------------------


def paid(town: Clockwork, member: str, order_id: str = "", **more: Any) -> OrderPaid:
    """An order of twenty yuan."""
    said = {"store_id": "nowhere", "city": "北京", "currency_code": "CNY", "total_minor": 2000, **more}
    return OrderPaid(
        member_id=member, order=Order(order_id=order_id or fresh("order"), paid_time=town.stamp, **said)
    )


def refund(town: Clockwork, member: str, order_id: str, amount: int = 0, **lines: int) -> OrderRefunded:
    """A refund of an amount, of lines, or of all that is left."""
    made = Refund(order_id=order_id, refund_id=fresh("refund"), refund_time=town.stamp)
    if amount:
        made.amount_minor = amount
    elif lines:
        for line_id, minor in lines.items():
            made.lines.lines.add(line_id=line_id, amount_minor=minor)
    else:
        made.all = True
    return OrderRefunded(member_id=member, refund=made)


async def test_of_an_order_delivered_many_times_at_once_one_counts(town: Clockwork) -> None:
    member = fresh("ann")
    once = town.delivery(paid(town, member, "one"))
    again = [replace(once, stream_seq=once.stream_seq + number) for number in range(20)]
    assert await town.deliver(*again) == [None] * 20
    # Told under another id it is the same order.
    assert await town.tell(paid(town, member, "one", total_minor=1)) == [None]
    assert (await town.profile(member)).orders == {
        "one": KeptOrder(
            order_id="one", store_id="nowhere", city="北京", paid_time=town.at, amount_minor=2000
        )
    }
    query = "SELECT stream, event_id FROM inbox WHERE bucket = $1 AND member_id = $2"
    async with town.database.read() as connection:
        rows = await connection.fetch(query, bucket(member), member)
    assert (once.stream, once.event_id) in [tuple(row) for row in rows]


async def test_refunds_count_by_amount_by_line_and_as_all_that_is_left_before_and_after(
    town: Clockwork,
) -> None:
    member = fresh("ann")
    early = refund(town, member, "one", 300)
    assert await town.tell(early, refund(town, member, "two")) == [None, None]
    assert await town.tell(paid(town, member, "one"), paid(town, member, "two")) == [None, None]
    assert await town.tell(refund(town, member, "one", a=500, b=200)) == [None]
    orders = (await town.profile(member)).orders
    assert sorted(orders["one"].refunds.values()) == [300, 700]
    assert list(orders["two"].refunds.values()) == [EVERYTHING]
    purchases = [order.purchase for order in orders.values()]
    assert [one.spent_minor for one in purchases if one and one.counts] == [1000]


async def test_orders_in_another_currency_are_no_facts(town: Clockwork) -> None:
    member = fresh("ann")
    assert await town.tell(paid(town, member, currency_code="USD")) == [None]
    assert (await town.profile(member)).orders == {}


async def test_after_a_paid_order_an_entry_to_the_stores_group_is_offered_once(town: Clockwork) -> None:
    member, other, name = fresh("ann"), fresh("ben"), fresh("welfare")
    await town.put(scheme(name))
    assert await town.tell(paid(town, member, "meal", store_id="gate")) == [None]
    (offer,) = await town.heard(member, epb.EntryOffered)
    assert (offer.order_id, offer.store_id) == ("meal", "gate")
    (group,) = [one for one in offer.groups if one.scheme_id == name]
    assert (await town.group(group.group_id)).site_id == "gate"
    # Not again within the cooldown, nor to somebody who is in the group.
    await town.seat(other, name, home_site_id="gate")
    await town.tell(paid(town, member, store_id="mill"), paid(town, other, store_id="gate"))
    assert len(await town.heard(member, epb.EntryOffered)) == 1
    assert [
        one.scheme_id for offer in await town.heard(other, epb.EntryOffered) for one in offer.groups
    ].count(name) == 0


# --- tiers, cards, strata -----------------------------------------------------------------------------


async def test_the_tier_that_points_tell_is_known_and_older_news_change_nothing(town: Clockwork) -> None:
    member = fresh("ann")
    assert await town.tell(points.TierChanged(**town.head(member, 7), to_tier="gold")) == [None]
    await town.tell(points.TierChanged(**town.head(member, 6), to_tier="silver"))
    assert (await town.profile(member)).facts == {"tier": "gold"}
    # What a restored service tells is newer than all before.
    await town.tell(points.TierChanged(**town.head(member, 1, epoch=2), from_tier="gold", to_tier=""))
    assert (await town.profile(member)).facts == {}


def card(town: Clockwork, kind: type[Message], member: str, version: int, **more: Any) -> Message:
    """What the cards service tells of a card of the family `king`."""
    said = {"card_id": "card_1", "plan_id": "month", "segment_id": "seg_1", "family": "king", **more}
    return kind(**town.head(member, version), **said)


def activated(town: Clockwork, member: str, version: int, *, in_days: int = 0) -> Message:
    start, end = Timestamp(), Timestamp()
    start.FromDatetime(town.at + in_days * DAY)
    end.FromDatetime(town.at + (in_days + 30) * DAY)
    period = {"start_time": start, "end_time": end, "plan_version": 1}
    return card(town, cards.CardActivated, member, version, **period)


async def test_a_card_is_held_while_it_runs(town: Clockwork) -> None:
    member, later = fresh("ann"), town.stamp

    async def held(*told: Message) -> dict[str, str]:
        assert await town.tell(*told) == [None] * len(told)
        return dict((await town.profile(member)).facts)

    frozen = card(town, cards.CardFrozen, member, 3, resume_time=later)
    resumed = card(town, cards.CardResumed, member, 5, end_time=later)
    queued = activated(town, member, 4, in_days=30)
    assert await held(activated(town, member, 1)) == {"card:king": "king"}
    assert await held(queued) == {"card:king": "king"}
    assert await held(frozen) == {}
    assert await held(activated(town, member, 2), queued) == {}  # late, and queued behind a rest
    assert await held(resumed) == {"card:king": "king"}
    assert await held(frozen) == {"card:king": "king"}
    assert await held(card(town, cards.CardExpired, member, 6, end_time=later)) == {}
    assert await held(activated(town, member, 7)) == {"card:king": "king"}
    assert await held(card(town, cards.CardRefunded, member, 8)) == {}


async def test_whoever_gets_a_share_of_others_orders_is_a_kol(town: Clockwork) -> None:
    member, other = fresh("ann"), fresh("ben")
    share, fixed = granted(town, member, fresh("reward")), granted(town, other, fresh("reward"))
    for told, order_id in ((share, "order-1"), (fixed, "")):
        cash = referral.CashReward(amount_minor=500, currency_code="CNY", order_id=order_id)
        told.cash.CopyFrom(cash)
    assert await town.tell(share, fixed) == [None, None]
    assert await tags(town, member) == {"stratum": "kol"}
    assert await tags(town, other) == {}


# --- rewards ------------------------------------------------------------------------------------------


def reward(reward_id: str, scheme_id: str, group_id: str) -> dict[str, Any]:
    return {
        "reward_id": reward_id,
        "campaign_id": "spring",
        "step_id": "first",
        "role": referral.REWARD_ROLE_INVITER,
        "group_entry": referral.GroupEntryReward(scheme_id=scheme_id, group_id=group_id),
    }


def granted(
    town: Clockwork, member: str, reward_id: str, scheme_id: str = "none", group_id: str = ""
) -> referral.RewardGranted:
    given = reward(reward_id, scheme_id, group_id)
    return referral.RewardGranted(**town.head(member), **given, campaign_version=1, round=1, attempt=1)


def clawed_back(
    town: Clockwork, member: str, reward_id: str, scheme_id: str = "none"
) -> referral.RewardClawedBack:
    given = reward(reward_id, scheme_id, "")
    return referral.RewardClawedBack(**town.head(member, 2), **given, reason=referral.REVOKE_REASON_REFUNDED)


async def test_a_reward_gives_a_seat_once_however_often_it_is_told(town: Clockwork) -> None:
    member, name, fans = fresh("ann"), fresh("reward"), fresh("fans")
    await town.put(scheme(fans, default_site_id="mill"))
    told = granted(town, member, name, fans)
    assert await town.tell(told, told) == [None, None]
    await town.tell(told)
    assert await town.told(member) == ["MemberAssigned", "RewardFulfilled"]
    (fulfilled,) = await town.heard(member, epb.RewardFulfilled)
    membership = await town.membership(member, fans)
    assert (fulfilled.reward_id, fulfilled.membership_id) == (name, membership.membership_id)
    assert membership.site_id == "mill"


async def test_a_reward_may_name_its_group(town: Clockwork) -> None:
    member, fans = fresh("ann"), fresh("fans")
    await town.put(scheme(fans))
    for number, site_id in enumerate(("mill", "gate")):
        group = await town.open(fans, site_id=site_id)
        who = f"{member}-{number}"
        assert await town.tell(granted(town, who, fresh("reward"), fans, group.group_id)) == [None]
        assert (await town.membership(who, fans)).group_id == group.group_id


async def test_a_reward_that_cannot_be_given_is_refused_with_the_event_that_asked(town: Clockwork) -> None:
    member, name = fresh("ann"), fresh("reward")
    once = town.delivery(granted(town, member, name, "nothing-of-ours"))
    assert await town.deliver(once, once) == [None, None]
    (refusal,) = await town.heard(member, epb.FulfilmentRefused)
    assert (refusal.reward_id, refusal.reason) == (name, "SCHEME_UNKNOWN")


async def test_a_reward_that_was_refused_is_given_once_when_told_again_after_that_was_mended(
    town: Clockwork,
) -> None:
    member, name, fans = fresh("ann"), fresh("reward"), fresh("fans")
    told = granted(town, member, name, fans)
    assert await town.tell(told) == [None]
    await town.put(scheme(fans, default_site_id="mill"))
    assert await town.tell(told, told) == [None, None]
    assert await town.told(member) == ["FulfilmentRefused", "MemberAssigned", "RewardFulfilled"]
    assert (await town.membership(member, fans)).reward_id == name
    assert await town.tell(clawed_back(town, member, name, fans), told) == [None, None]
    assert not any(one.active for one in (await town.profile(member)).memberships.values())


async def test_a_reward_is_taken_back_also_where_that_is_told_first(town: Clockwork) -> None:
    fans = fresh("fans")
    await town.put(scheme(fans, default_site_id="mill"))
    for backwards in (False, True):
        member, name = fresh("ann"), fresh("reward")
        told: list[Message] = [
            granted(town, member, name, fans),
            clawed_back(town, member, name, fans),
        ]
        for message in reversed(told) if backwards else told:
            assert await town.tell(message) == [None]
        seats = [one for one in (await town.profile(member)).memberships.values() if one.scheme_id == fans]
        assert not any(one.active for one in seats)
        if backwards:
            (refusal,) = await town.heard(member, epb.FulfilmentRefused)
            assert (refusal.reason, seats) == ("REWARD_TAKEN_BACK", [])


async def test_rewards_of_other_kinds_are_not_for_us(town: Clockwork) -> None:
    member = fresh("ann")
    told, back = granted(town, member, fresh("reward")), clawed_back(town, member, fresh("reward"))
    told.points.amount = back.points.amount = 88
    assert await town.tell(told, back) == [None, None]
    assert (await town.profile(member)).version == 0
    assert await town.told(member) == []


# --- what cannot be read ------------------------------------------------------------------------------


async def test_poison_is_refused_and_its_neighbours_are_applied(town: Clockwork) -> None:
    member = fresh("ann")
    sound = points.TierChanged(**town.head(member), to_tier="gold")
    garbage = replace(town.delivery(sound), body=b"\xff\xff")
    nobody = town.delivery(points.TierChanged(**town.head("no such member!"), to_tier="gold"))
    never = refund(town, member, fresh("order"))
    never.refund.refund_time.nanos = 2_000_000_000
    unpaid = paid(town, member, currency_code="USD")
    unpaid.order.paid_time.nanos = 2_000_000_000
    strange = town.delivery(sound, subject="loyalty.points.v1.PointsPosted")
    outcomes = await town.deliver(
        garbage, nobody, town.delivery(never), town.delivery(unpaid), strange, town.delivery(sound)
    )
    assert reasons(outcomes) == [*["MALFORMED_REQUEST"] * 5, ""]
    assert (await town.profile(member)).facts == {"tier": "gold"}


def test_each_stream_is_asked_for_what_is_read_here_alone() -> None:
    asked = {stream: [name.rpartition(".")[2] for name in names] for stream, (_, names) in STREAMS.items()}
    assert asked == {
        "ORDERS": ["OrderPaid", "OrderRefunded"],
        "POINTS": ["TierChanged"],
        "CARDS": ["CardActivated", "CardExpired", "CardFrozen", "CardRefunded", "CardResumed"],
        "REFERRAL": ["RewardGranted", "RewardClawedBack"],
    }


async def test_events_join_the_batches_of_calls(town: Clockwork) -> None:
    """Many members, each told of and calling at once, and each gets what is its own."""
    fans = fresh("fans")
    await town.put(scheme(fans, capacity=100))
    members = [fresh("member") for _ in range(30)]
    told = town.tell(*(paid(town, member, store_id="gate") for member in members))
    asked = (town.seat(member, fans, home_site_id="mill") for member in members)
    outcomes, seats = await asyncio.gather(told, asyncio.gather(*asked))
    assert outcomes == [None] * 30
    assert [seat.membership.member_id for seat in seats] == members
    for member in members:
        profile = await town.profile(member)
        assert [order.store_id for order in profile.orders.values()] == ["gate"]
        membership = profile.active(fans)
        assert membership is not None
        assert (membership.site_id, membership.status) == ("mill", MembershipStatus.ASSIGNED)
