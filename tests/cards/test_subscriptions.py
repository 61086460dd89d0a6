"""What others tell reaches the cards once, however often it comes; what is nobody's here is left aside."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from loyalty.cards.v1 import cards_events_pb2 as epb
from loyalty.cards.v1 import cards_service_pb2 as pb
from loyalty.orders.v1.orders_pb2 import OrderRefunded, Refund
from loyalty.points.v1 import points_events_pb2 as points
from loyalty.points.v1 import points_service_pb2 as points_pb
from loyalty.referral.v1 import referral_events_pb2 as referral

from services.cards import store
from services.cards.commands import ConfirmUses, Redeem
from services.cards.domain.payments import OrderStatus
from services.cards.domain.wallet import KeptOrder
from services.cards.errors import NotEligible
from services.cards.subscriptions import STREAMS
from services.chassis.consumer import Outcome
from services.chassis.database import Database
from services.chassis.ids import bucket
from tests.cards.branch import Branch
from tests.cards.till import NOON, basket, benefit, product
from tests.support import fresh

DAY = timedelta(days=1)


@pytest.fixture
def branch(database: Database) -> Branch:
    """A branch in which it is NOON."""
    return Branch(database)


async def on_sale(branch: Branch, *benefits: dict[str, Any], **more: Any) -> pb.Product:
    """A product of the test's own, for 300 points or 30.00."""
    made = product(
        *benefits,
        **{"code": fresh("coffee"), "period": "P30D", "price_minor": 3000, "points_price": 300, **more},
    )
    await branch.put(made)
    return made


def head(member: str, version: int = 1, epoch: int = 1) -> dict[str, Any]:
    """What every event of another service begins with."""
    return {"member_id": member, "occur_time": stamp(), "epoch": epoch, "version": version}


def stamp() -> Timestamp:
    made = Timestamp()
    made.FromDatetime(NOON)
    return made


def reasons(outcomes: Sequence[Outcome]) -> list[str]:
    """Why events were refused."""
    return [outcome.reason if outcome else "" for outcome in outcomes]


# --- points that are held -----------------------------------------------------------------------------


def hold(order: pb.CardOrder, state: str) -> points_pb.Hold:
    return points_pb.Hold(
        hold_id=f"hold_{order.order_id}",
        amount=order.amount_points,
        reference_id=order.order_id,
        state=points_pb.HoldState.Value(f"HOLD_STATE_{state}"),
    )


def placed(order: pb.CardOrder) -> Message:
    return points.HoldPlaced(**head(order.member_id), hold=hold(order, "PLACED"))


def captured(order: pb.CardOrder) -> Message:
    return points.HoldCaptured(**head(order.member_id, 2), hold=hold(order, "CAPTURED"))


def released(order: pb.CardOrder, state: str = "RELEASED") -> Message:
    return points.HoldReleased(**head(order.member_id, 3), hold=hold(order, state))


def refused(order: pb.CardOrder) -> Message:
    return points.HoldRefused(
        **head(order.member_id), reference_id=order.order_id, reason="INSUFFICIENT_POINTS"
    )


async def kept(branch: Branch, order: pb.CardOrder) -> KeptOrder:
    """An order as it is kept."""
    async with branch.database.read() as connection:
        found = await store.order(connection, order.member_id, order.order_id)
    assert found is not None
    return found


async def test_points_that_are_set_aside_and_spent_become_a_card_once(branch: Branch) -> None:
    order = await branch.order(fresh("ann"), await on_sale(branch), by_points=True)
    for _ in range(2):
        assert await branch.tell(placed(order)) == [None]
    assert (await kept(branch, order)).order.status is OrderStatus.SETTLING
    for _ in range(2):
        assert await branch.tell(captured(order)) == [None]
    assert (await kept(branch, order)).order.status is OrderStatus.PAID
    assert await branch.announced(order.member_id) == ["CardOrdered", "CardOrderSettled", "CardActivated"]
    (activated,) = await branch.heard(order.member_id, epb.CardActivated)
    assert (activated.paid_points, activated.card_order_id) == (300, order.order_id)


async def test_of_one_event_delivered_many_times_at_once_one_counts(branch: Branch) -> None:
    order = await branch.order(fresh("ann"), await on_sale(branch), by_points=True)
    once = branch.delivery(placed(order))
    again = [replace(once, stream_seq=once.stream_seq + number) for number in range(20)]
    assert await branch.deliver(*again) == [None] * 20
    assert await branch.announced(order.member_id) == ["CardOrdered", "CardOrderSettled"]
    query = "SELECT stream, event_id FROM inbox WHERE bucket = $1 AND member_id = $2"
    async with branch.database.read() as connection:
        rows = await connection.fetch(query, bucket(order.member_id), order.member_id)
    assert [tuple(row) for row in rows] == [(once.stream, once.event_id)]


async def test_points_that_are_refused_end_the_order_and_say_why(branch: Branch) -> None:
    order = await branch.order(fresh("ann"), await on_sale(branch), by_points=True)
    assert await branch.tell(refused(order)) == [None]
    ended = (await kept(branch, order)).order
    assert (ended.status, ended.end_reason) == (OrderStatus.CANCELLED, "INSUFFICIENT_POINTS")


@pytest.mark.parametrize(("state", "reason"), [("RELEASED", "HOLD_RELEASED"), ("EXPIRED", "HOLD_EXPIRED")])
async def test_points_that_came_back_end_the_order(branch: Branch, state: str, reason: str) -> None:
    order = await branch.order(fresh("ann"), await on_sale(branch), by_points=True)
    await branch.tell(placed(order))
    assert await branch.tell(released(order, state)) == [None]
    ended = (await kept(branch, order)).order
    assert (ended.status, ended.end_reason) == (OrderStatus.CANCELLED, reason)


async def test_points_set_aside_after_the_deadline_are_released(branch: Branch) -> None:
    order = await branch.order(fresh("ann"), await on_sale(branch), by_points=True)
    branch.wait(minutes=15)
    assert await branch.tell(placed(order)) == [None]
    (settled,) = await branch.heard(order.member_id, epb.CardOrderSettled)
    assert settled.outcome == epb.CARD_ORDER_OUTCOME_RELEASE
    assert (await kept(branch, order)).order.status is OrderStatus.EXPIRED


async def test_what_was_left_of_a_captured_hold_ends_nothing_whenever_it_is_told(branch: Branch) -> None:
    order = await branch.order(fresh("ann"), await on_sale(branch), by_points=True)
    await branch.tell(placed(order))
    assert await branch.tell(released(order, "CAPTURED")) == [None]
    assert (await kept(branch, order)).order.status is OrderStatus.SETTLING
    await branch.tell(captured(order))
    assert (await kept(branch, order)).order.status is OrderStatus.PAID


async def test_the_news_of_a_hold_in_any_order_end_in_the_same(branch: Branch) -> None:
    made = await on_sale(branch)
    order = await branch.order(fresh("ann"), made, by_points=True)
    await branch.tell(captured(order))
    await branch.tell(placed(order))
    assert (await kept(branch, order)).order.status is OrderStatus.PAID
    assert await branch.heard(order.member_id, epb.CardOrderSettled) == []
    (activated,) = await branch.heard(order.member_id, epb.CardActivated)
    assert activated.paid_points == 300


async def test_holds_for_other_things_leave_no_trace(branch: Branch) -> None:
    member = fresh("ann")
    sofa = pb.CardOrder(member_id=member, order_id="a-sofa", amount_points=9000)
    told = (placed(sofa), refused(sofa), captured(sofa), released(sofa))
    assert await branch.tell(*told) == [None] * 4
    async with branch.database.read() as connection:
        assert await store.member(connection, member) is None


async def test_a_hold_for_an_order_that_is_not_the_members_changes_nothing(branch: Branch) -> None:
    order = await branch.order(fresh("ann"), await on_sale(branch), by_points=True)
    foreign = pb.CardOrder(member_id=fresh("ben"), order_id=order.order_id, amount_points=300)
    assert await branch.tell(placed(foreign), captured(foreign)) == [None, None]
    assert (await kept(branch, order)).order.status is OrderStatus.PENDING_PAYMENT
    assert await branch.announced(foreign.member_id) == []


# --- tiers --------------------------------------------------------------------------------------------


async def test_the_tier_that_points_tell_decides_who_may_buy(branch: Branch) -> None:
    member, made = fresh("ann"), await on_sale(branch, eligible="member.tier == 'gold'")
    with pytest.raises(NotEligible):
        await branch.order(member, made)
    assert await branch.tell(points.TierChanged(**head(member, 7), to_tier="gold")) == [None]
    assert (await branch.order(member, made)).order_id
    # What is older than what is known says nothing; what a restored service tells is newer than all before.
    await branch.tell(points.TierChanged(**head(member, 6), to_tier=""))
    assert (await branch.wallet(member)).tier == "gold"
    await branch.tell(points.TierChanged(**head(member, 1, epoch=2), from_tier="gold", to_tier=""))
    assert (await branch.wallet(member)).tier == ""
    with pytest.raises(NotEligible):
        await branch.order(member, made)


# --- rewards ------------------------------------------------------------------------------------------


def reward(reward_id: str, plan_id: str) -> dict[str, Any]:
    return {
        "reward_id": reward_id,
        "campaign_id": "spring",
        "step_id": "first",
        "role": referral.REWARD_ROLE_INVITER,
        "card": referral.CardReward(plan_id=plan_id),
    }


def granted(member: str, reward_id: str, plan_id: str) -> referral.RewardGranted:
    return referral.RewardGranted(
        **head(member), **reward(reward_id, plan_id), campaign_version=1, round=1, attempt=1
    )


def clawed_back(member: str, reward_id: str, plan_id: str) -> referral.RewardClawedBack:
    return referral.RewardClawedBack(
        **head(member, 2), **reward(reward_id, plan_id), reason=referral.REVOKE_REASON_REFUNDED
    )


async def test_a_reward_gives_a_period_once_and_says_so(branch: Branch) -> None:
    member, name, made = fresh("ann"), fresh("reward"), await on_sale(branch)
    told = granted(member, name, made.code)
    assert await branch.tell(told, told) == [None, None]
    assert await branch.announced(member) == ["CardActivated", "RewardFulfilled"]
    (activated,) = await branch.heard(member, epb.CardActivated)
    (fulfilled,) = await branch.heard(member, epb.RewardFulfilled)
    assert (activated.reward_id, fulfilled.reward_id) == (name, name)
    assert fulfilled.segment_id == activated.segment_id


async def test_a_reward_that_cannot_be_given_is_refused_with_the_event_that_asked(branch: Branch) -> None:
    member, name = fresh("ann"), fresh("reward")
    assert await branch.tell(granted(member, name, "nothing-of-ours")) == [None]
    (refusal,) = await branch.heard(member, epb.FulfilmentRefused)
    assert (refusal.reward_id, refusal.reason) == (name, "PRODUCT_UNKNOWN")


async def test_a_reward_is_taken_back_also_where_that_is_told_first(branch: Branch) -> None:
    made = await on_sale(branch)
    for backwards in (False, True):
        member, name = fresh("ann"), fresh("reward")
        told: list[Message] = [granted(member, name, made.code), clawed_back(member, name, made.code)]
        for message in reversed(told) if backwards else told:
            assert await branch.tell(message) == [None]
        assert (await branch.announced(member))[-1] == ("FulfilmentRefused" if backwards else "CardRefunded")
        cards = (await branch.wallet(member)).cards.values()
        assert not any(card.card.live(branch.clock.at) for card in cards)


async def test_rewards_of_other_kinds_are_not_for_us(branch: Branch) -> None:
    member = fresh("ann")
    told, back = granted(member, fresh("reward"), "x"), clawed_back(member, fresh("reward"), "x")
    told.points.amount = back.points.amount = 88
    assert await branch.tell(told, back) == [None, None]
    async with branch.database.read() as connection:
        assert await store.member(connection, member) is None


# --- refunds of the brand's orders --------------------------------------------------------------------


def refund(member: str, order_id: str, amount: int = 0, **lines: int) -> OrderRefunded:
    """A refund of an amount, of lines, or of all that is left."""
    made = Refund(order_id=order_id, refund_id=fresh("refund"), refund_time=stamp())
    if amount:
        made.amount_minor = amount
    elif lines:
        for line_id, minor in lines.items():
            made.lines.lines.add(line_id=line_id, amount_minor=minor)
    else:
        made.all = True
    return OrderRefunded(member_id=member, refund=made)


async def test_an_order_that_is_refunded_gives_its_uses_back_line_by_line(branch: Branch) -> None:
    member, order_id = fresh("ann"), fresh("order")
    made = await on_sale(branch, benefit("coffee", limit=1), benefit("tea", limit=1))
    await branch.buy(member, made)
    bill = basket(order_id, coffee=1, tea=1)
    await branch.do(Redeem, member, bill=bill, expected_saved_minor=2400)
    await branch.do(ConfirmUses, member, order_id=order_id)
    assert await branch.tell(refund(member, order_id, coffee=799)) == [None]
    assert await branch.heard(member, epb.BenefitReversed) == []
    last = refund(member, order_id, coffee=1)
    assert await branch.tell(last, last) == [None, None]
    (reversed_,) = await branch.heard(member, epb.BenefitReversed)
    assert (reversed_.benefit_code, reversed_.saved_minor) == ("coffee", 1200)
    assert reversed_.reason == epb.BENEFIT_REVERSE_REASON_ORDER_REFUNDED
    assert await branch.tell(refund(member, order_id)) == [None]
    assert [e.benefit_code for e in await branch.heard(member, epb.BenefitReversed)] == ["coffee", "tea"]
    windows = (await branch.wallet(member)).windows.values()
    assert [window.used for window in windows] == [0, 0]


async def test_a_refund_of_an_order_without_benefits_changes_nothing(branch: Branch) -> None:
    member = fresh("ann")
    assert await branch.tell(refund(member, fresh("order"))) == [None]
    assert await branch.announced(member) == []


# --- what cannot be read ------------------------------------------------------------------------------


async def test_poison_is_refused_and_its_neighbours_are_applied(branch: Branch) -> None:
    member = fresh("ann")
    sound = points.TierChanged(**head(member), to_tier="gold")
    garbage = replace(branch.delivery(sound), body=b"\xff\xff")
    nobody = branch.delivery(points.TierChanged(**head("no such member!"), to_tier="gold"))
    never = refund(member, fresh("order"))
    never.refund.refund_time.nanos = 2_000_000_000
    strange = branch.delivery(sound, subject="loyalty.points.v1.PointsPosted")
    outcomes = await branch.deliver(garbage, nobody, branch.delivery(never), strange, branch.delivery(sound))
    assert reasons(outcomes) == [*["MALFORMED_REQUEST"] * 4, ""]
    assert (await branch.wallet(member)).tier == "gold"


def test_each_stream_is_asked_for_what_is_read_here_alone() -> None:
    asked = {stream: [name.rpartition(".")[2] for name in names] for stream, (_, names) in STREAMS.items()}
    assert asked == {
        "POINTS": ["HoldPlaced", "HoldRefused", "HoldCaptured", "HoldReleased", "TierChanged"],
        "REFERRAL": ["RewardGranted", "RewardClawedBack"],
        "ORDERS": ["OrderRefunded"],
    }


async def test_events_join_the_batches_of_calls(branch: Branch) -> None:
    """Many members, each told of and calling at once, and each gets what is its own."""
    made = await on_sale(branch)
    members = [fresh("member") for _ in range(30)]
    orders = await asyncio.gather(*(branch.order(member, made, by_points=True) for member in members))
    told = branch.tell(*map(placed, orders))
    bought = (branch.buy(member, made) for member in members)
    outcomes, cards = await asyncio.gather(told, asyncio.gather(*bought))
    assert outcomes == [None] * 30
    assert [card.member_id for card in cards] == members
    await branch.tell(*map(captured, orders))
    for member, card in zip(members, cards, strict=True):
        found = (await branch.wallet(member)).cards[card.card_id].card
        assert [(one.paid_minor, one.paid_points) for one in found.segments] == [(3000, 0), (0, 300)]
