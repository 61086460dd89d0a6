"""Cards in their wallets: giving them back, rests, rewards, and what the clock tells of them."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from loyalty.cards.v1 import cards_events_pb2 as epb
from loyalty.cards.v1 import cards_service_pb2 as pb

from services.cards.commands import ClawBack, ConfirmUses, GrantReward, Redeem, RefundCard
from services.cards.errors import (
    CardFrozen,
    CardNotActive,
    CardNotFrozen,
    CardUnknown,
    FreezeCount,
    FreezeLength,
    FreezeNotAllowed,
    FreezeTooShort,
    NothingToRefund,
    QuoteChanged,
)
from tests.cards.shop import ANN, BEN, LENIENT, Shop
from tests.cards.till import NOON, TICK, basket, benefit, product


@pytest.fixture
def shop() -> Shop:
    return Shop()


def instant(stamp: Timestamp) -> timedelta:
    """How long after NOON it is."""
    return timedelta(microseconds=stamp.ToMicroseconds()) - timedelta(seconds=NOON.timestamp())


def due(shop: Shop, member: str = ANN) -> dict[str, int]:
    """What is to be paid back, by payment."""
    return {event.payment_id: event.amount_minor for event in shop.heard(epb.RefundDue, member)}


def told(shop: Shop, member: str = ANN) -> list[str]:
    """What was announced of the member's cards, in order."""
    return [type(event).__name__ for event in shop.events[member] if type(event).__name__ != "CardOrdered"]


# --- giving back --------------------------------------------------------------------------------------


def test_an_unused_card_is_given_back_whole_within_its_cooling_off(shop: Shop) -> None:
    card = shop.pay(shop.order(), payment_id="p").card
    shop.wait(days=6)
    answer = shop.give_back(card, minor=3000)
    assert answer.quote.refund_minor == 3000
    assert (answer.card.status, answer.card.segments[0].ended) == (
        pb.CARD_STATUS_REFUNDED,
        pb.SEGMENT_END_REFUNDED,
    )
    assert due(shop) == {"p": 3000}
    [refunded] = shop.heard(epb.CardRefunded)
    assert (refunded.refund_minor, refunded.currency_code, refunded.refund_points) == (3000, "CNY", 0)
    with pytest.raises(NothingToRefund):
        shop.give_back(card)


def test_a_card_that_was_used_is_given_back_for_its_unused_days_less_what_it_saved() -> None:
    shop = Shop(product(benefit("tea", limit=5), period="P30D", price_minor=3000, refund_policy=LENIENT))
    card = shop.buy()
    shop.do(Redeem, bill=basket("order", tea=2, price=900), expected_saved_minor=200)
    shop.do(ConfirmUses, order_id="order")
    shop.wait(days=10)
    answer = shop.give_back(card)
    steps = {
        pb.RefundStepKind.Name(s.kind).removeprefix("REFUND_STEP_KIND_"): s for s in answer.quote.explanation
    }
    assert {name: step.amount for name, step in steps.items()} == {
        "PAID": 3000,
        "USED_DAYS": -1000,
        "USED_BENEFITS": -200,
    }
    assert steps["USED_BENEFITS"].count == 2
    assert answer.quote.refund_minor == sum(due(shop).values()) == 1800


def test_each_payment_of_a_chain_is_paid_back_the_newest_first(shop: Shop) -> None:
    shop.pay(shop.order(), payment_id="first")
    shop.wait(days=15)
    card = shop.pay(shop.order("feast"), payment_id="second").card
    answer = shop.give_back(card)
    assert answer.quote.refund_minor == 9000 + 1500
    assert due(shop) == {"second": 9000, "first": 1500}


def test_what_is_left_of_a_payment_that_was_paid_back_is_not_paid_back_later() -> None:
    shop = Shop(product(benefit("tea", limit=5), period="P30D", price_minor=3000, refund_policy=LENIENT))
    for payment_id in ("first", "second"):
        card = shop.pay(shop.order(), payment_id=payment_id).card
    shop.do(Redeem, bill=basket("order", tea=2, price=900), expected_saved_minor=200)
    assert shop.give_back(card).quote.refund_minor == 5800
    # Paid before the others, and told of after them.
    shop.pay(shop.order(), payment_id="third", paid=shop.at - timedelta(minutes=1))
    assert shop.give_back(card).quote.refund_minor == 3000
    told = [event.payment_id for event in shop.heard(epb.RefundDue)]
    assert sorted(told) == ["first", "second", "third"]
    assert sum(due(shop).values()) == 5800 + 3000


def test_what_an_upgrades_credit_was_worth_goes_back_to_the_payment_before_it(shop: Shop) -> None:
    shop.pay(shop.order(), payment_id="first")
    shop.wait(days=10)
    card = shop.pay(shop.order("feast", upgrade_now=True), payment_id="second").card
    shop.give_back(card, minor=9000)
    assert due(shop) == {"second": 7000, "first": 2000}


def test_points_go_back_by_event_alone(shop: Shop) -> None:
    order = shop.order(by_points=True)
    shop.hold(order)
    shop.capture(order)
    answer = shop.give_back(shop.card(), points=300)
    assert (answer.quote.refund_points, answer.quote.refund_minor) == (300, 0)
    assert shop.heard(epb.CardRefunded)[0].refund_points == 300
    assert not due(shop)


def test_a_card_is_given_back_for_no_less_than_was_shown(shop: Shop) -> None:
    card = shop.buy()
    shop.wait(days=7)
    with pytest.raises(QuoteChanged) as refused:
        shop.give_back(card, minor=3000)
    assert refused.value.metadata == {"refund_minor": "2300", "refund_points": "0"}
    with pytest.raises(QuoteChanged):
        shop.give_back(card, points=1)
    shop.give_back(card, minor=2300)


def test_a_claimed_gift_gives_its_receiver_nothing_back(shop: Shop) -> None:
    gift = shop.gift()
    shop.pay(gift.order)
    card = shop.claim(gift, BEN)
    assert shop.give_back(card).quote.refund_minor == 0
    assert not due(shop, BEN)
    assert not due(shop)


def test_a_card_given_back_and_bought_again_begins_anew(shop: Shop) -> None:
    card = shop.buy()
    shop.wait(days=1)
    shop.give_back(card)
    again = shop.buy()
    assert (again.card_id, again.status, again.streak) == (card.card_id, pb.CARD_STATUS_ACTIVE, 1)
    assert shop.give_back(again).quote.refund_minor == 3000


def test_nobody_elses_card_is_given_back(shop: Shop) -> None:
    card = shop.buy()
    with pytest.raises(CardUnknown):
        shop.do(RefundCard, BEN, card_id=card.card_id, expected_minor=0, expected_points=0)


# --- rests --------------------------------------------------------------------------------------------


def test_a_rest_moves_what_runs_and_what_is_queued(shop: Shop) -> None:
    shop.buy()
    card = shop.buy("feast")
    shop.wait(days=10)
    frozen = shop.freeze(card, 20)
    assert frozen.status == pb.CARD_STATUS_FROZEN
    [event] = shop.heard(epb.CardFrozen)
    assert instant(event.resume_time) == timedelta(days=30)
    shop.wait(days=5)
    resumed = shop.resume(card)
    assert resumed.status == pb.CARD_STATUS_ACTIVE
    [told_then] = shop.heard(epb.CardResumed)
    assert instant(told_then.end_time) == timedelta(days=35)
    [later] = told_then.later_segments
    assert (instant(later.start_time), instant(later.end_time)) == (timedelta(days=35), timedelta(days=65))


def test_a_rest_that_nobody_ends_is_over_by_itself_and_that_is_told_once(shop: Shop) -> None:
    card = shop.buy()
    shop.freeze(card, 20)
    shop.wait(days=70)
    assert told(shop) == ["CardActivated", "CardFrozen", "CardResumed", "CardExpired"]
    moments = [instant(event.occur_time) for event in shop.events[ANN][-2:]]  # type: ignore[attr-defined]
    assert moments == [timedelta(days=20), timedelta(days=50)]


def test_a_period_bought_during_a_rest_is_told_of_as_late_as_it_may_begin(shop: Shop) -> None:
    card = shop.buy()
    shop.freeze(card, 20)
    shop.buy("feast")
    activated = shop.heard(epb.CardActivated)[-1]
    assert instant(activated.start_time) == timedelta(days=50)
    shop.wait(days=5)
    shop.resume(card)
    [later] = shop.heard(epb.CardResumed)[0].later_segments
    assert instant(later.start_time) == timedelta(days=35)


def test_rests_are_as_the_product_says(shop: Shop) -> None:
    card = shop.buy()
    with pytest.raises(CardNotFrozen):
        shop.resume(card)
    with pytest.raises(FreezeLength):
        shop.freeze(card, 31)
    shop.freeze(card, 30)
    with pytest.raises(CardFrozen):
        shop.freeze(card, 1)
    with pytest.raises(FreezeTooShort):
        shop.resume(card)
    shop.wait(days=1)
    shop.resume(card)
    shop.freeze(card, 1)
    shop.wait(days=1)
    with pytest.raises(FreezeCount):
        shop.freeze(card, 1)
    strict = shop.buy("taste", BEN)
    with pytest.raises(FreezeNotAllowed):
        shop.freeze(strict, 1)
    shop.wait(days=1)
    with pytest.raises(CardNotActive):
        shop.freeze(strict, 1)


def test_a_rest_longer_than_what_is_left_of_the_period_is_long_enough_to_be_ended(shop: Shop) -> None:
    card = shop.buy()
    shop.wait(days=29)
    shop.freeze(card, 30)
    shop.wait(days=10)
    assert shop.resume(card).status == pb.CARD_STATUS_ACTIVE


# --- rewards ------------------------------------------------------------------------------------------


def grant(shop: Shop, code: str = "coffee", reward_id: str = "reward") -> None:
    shop.do(GrantReward, reward_id=reward_id, product_code=code, by_event=True)


def claw_back(shop: Shop, reward_id: str = "reward") -> None:
    shop.do(ClawBack, reward_id=reward_id, by_event=True)


def test_a_reward_is_given_once_and_that_is_told(shop: Shop) -> None:
    grant(shop)
    grant(shop)
    [fulfilled], [activated] = shop.heard(epb.RewardFulfilled), shop.heard(epb.CardActivated)
    assert (fulfilled.reward_id, fulfilled.plan_id) == ("reward", "coffee")
    assert (activated.reward_id, activated.card_order_id, activated.paid_minor) == ("reward", "", 0)
    assert fulfilled.segment_id == activated.segment_id


def test_a_reward_that_cannot_be_given_is_refused_by_event(shop: Shop) -> None:
    grant(shop, "tea")
    assert [event.reason for event in shop.heard(epb.FulfilmentRefused)] == ["PRODUCT_UNKNOWN"]
    shop.put(product(code="tea"))
    grant(shop, "tea")
    assert shop.heard(epb.RewardFulfilled)[0].version == 2


def test_a_reward_taken_back_before_it_was_given_is_not_given(shop: Shop) -> None:
    claw_back(shop)
    grant(shop)
    assert [event.reason for event in shop.heard(epb.FulfilmentRefused)] == ["REWARD_TAKEN_BACK"]
    assert not shop.wallet().cards


def test_a_reward_taken_back_ends_its_period_and_leaves_the_others_where_they_are(shop: Shop) -> None:
    grant(shop)
    shop.buy("feast")
    shop.wait(days=5)
    claw_back(shop)
    claw_back(shop)
    [refunded] = shop.heard(epb.CardRefunded)
    assert (refunded.refund_minor, refunded.refund_points, list(refunded.later_segment_ids)) == (0, 0, [])
    card = shop.card()
    assert card.status == pb.CARD_STATUS_SCHEDULED
    assert [one.ended for one in card.segments] == [pb.SEGMENT_END_CLAWED_BACK, pb.SEGMENT_END_UNSPECIFIED]


def test_a_resting_reward_taken_back_tells_of_the_periods_behind_it_as_they_stand(shop: Shop) -> None:
    grant(shop)
    shop.buy("feast")
    shop.freeze(shop.card(), 20)
    shop.wait(days=5)
    claw_back(shop)
    assert told(shop)[-2:] == ["CardResumed", "CardRefunded"]
    [later] = shop.heard(epb.CardResumed)[0].later_segments
    assert instant(later.start_time) == timedelta(days=35)


def test_a_reward_that_is_over_is_not_taken_back(shop: Shop) -> None:
    grant(shop)
    shop.wait(days=30)
    claw_back(shop)
    assert not shop.heard(epb.CardRefunded)


# --- by the clock -------------------------------------------------------------------------------------


def test_the_end_of_a_card_is_told_three_days_ahead_and_when_it_has_come_once_each(shop: Shop) -> None:
    shop.buy()
    shop.at += timedelta(days=27) - TICK
    shop.settle()
    assert told(shop) == ["CardActivated"]
    shop.wait(microseconds=1)
    assert told(shop) == ["CardActivated", "CardExpiring"]
    shop.wait(days=3)
    shop.wait(days=1)
    assert told(shop) == ["CardActivated", "CardExpiring", "CardExpired"]
    assert instant(shop.heard(epb.CardExpired)[0].occur_time) == timedelta(days=30)


def test_an_end_that_is_there_is_not_told_of_ahead(shop: Shop) -> None:
    shop.buy()
    shop.at += timedelta(days=30) - TICK
    late = shop.copy()
    late.settle()
    [expiring] = late.heard(epb.CardExpiring)
    assert instant(expiring.occur_time) == timedelta(days=27)
    shop.wait(microseconds=1)
    assert told(shop) == ["CardActivated", "CardExpired"]


def test_a_card_that_goes_on_does_not_end(shop: Shop) -> None:
    shop.buy()
    shop.buy()
    shop.wait(days=40)
    assert told(shop) == ["CardActivated", "CardActivated"]
    assert instant(shop.heard(epb.CardActivated)[1].end_time) == timedelta(days=60)


def test_a_new_end_is_told_of_anew(shop: Shop) -> None:
    shop.buy()
    shop.wait(days=28)
    shop.buy()
    shop.wait(days=30)
    assert told(shop).count("CardExpiring") == 2


def test_a_card_shorter_than_the_notice_is_told_of_at_once(shop: Shop) -> None:
    shop.wait(days=1)
    shop.buy("taste")
    [expiring] = shop.heard(epb.CardExpiring)
    assert instant(expiring.occur_time) == timedelta(days=1)


def test_a_card_given_back_does_not_end_again(shop: Shop) -> None:
    shop.give_back(shop.buy())
    shop.wait(days=40)
    assert told(shop) == ["CardActivated", "CardRefunded", "RefundDue"]
    assert shop.wallet().next_due_time is None


def test_what_is_due_next_is_known(shop: Shop) -> None:
    def next_due() -> datetime | None:
        return shop.wallet().next_due_time

    order = shop.order()
    assert next_due() == shop.at + timedelta(minutes=15)
    card = shop.pay(order).card
    assert next_due() == NOON + timedelta(days=27)
    shop.freeze(card, 10)
    assert next_due() == NOON + timedelta(days=10)
    shop.wait(days=10)
    assert next_due() == NOON + timedelta(days=37)
    shop.wait(days=31)
    assert next_due() is None


def test_what_fell_due_is_posted_before_what_is_asked(shop: Shop) -> None:
    card = shop.buy()
    shop.freeze(card, 10)
    shop.at += timedelta(days=11)
    shop.freeze(card, 10)
    assert told(shop) == ["CardActivated", "CardFrozen", "CardResumed", "CardFrozen"]
