"""Signed renewals over a real channel: notice, order, charge, and what is refused."""

from __future__ import annotations

from datetime import timedelta

from grpc import StatusCode
from loyalty.cards.v1 import cards_service_pb2 as pb
from loyalty.cards.v1.cards_events_pb2 import REFUND_DUE_REASON_NO_NOTICE

from tests.cards.calls import (
    LENIENT,
    NO_CARD,
    NO_RENEWAL,
    RESTS,
    a_product,
    buy,
    cancel_renewal,
    freeze,
    give_back,
    instant,
    move,
    notify,
    pay,
    put,
    read_card,
    read_order,
    sell,
    sign,
    stamp,
)
from tests.support import Cards, fresh, refused

TICK = timedelta(microseconds=1)


def test_a_signed_renewal_says_when_what_is_due(cards: Cards) -> None:
    card = buy(cards, fresh("member"), sold := sell(cards))
    renewal = sign(cards, card)
    assert (renewal.card_id, renewal.segment_id) == (card.card_id, card.segments[0].segment_id)
    assert (renewal.product_code, renewal.amount_minor, renewal.currency_code) == (sold.code, 1900, "CNY")
    assert renewal.status == pb.RENEWAL_STATUS_SIGNED
    times = [
        instant(at)
        for at in (
            renewal.notice_due_time,
            renewal.notice_deadline_time,
            renewal.charge_time,
            card.end_time,
            renewal.charge_until_time,
        )
    ]
    assert times == sorted(times)
    assert instant(renewal.charge_time) - instant(renewal.notice_deadline_time) == timedelta(days=5)
    assert read_card(cards, card).auto_renew
    with refused(StatusCode.FAILED_PRECONDITION, "AUTO_RENEW_SIGNED"):
        sign(cards, card)


def test_what_cannot_be_renewed_is_not_signed(cards: Cards) -> None:
    member = fresh("member")
    card = buy(cards, member, sold := sell(cards, freeze_policy=RESTS))
    other = sell(cards)
    unsold = sell(cards, family=sold.family, withdrawn=True)
    for_points = sell(cards, family=sold.family, price_minor=0, points_price=5)
    with refused(StatusCode.NOT_FOUND, "PRODUCT_UNKNOWN"):
        sign(cards, card, fresh("nothing"))
    with refused(StatusCode.NOT_FOUND, "PRODUCT_UNKNOWN"):
        sign(cards, card, other.code)  # of another family
    with refused(StatusCode.FAILED_PRECONDITION, "PRODUCT_WITHDRAWN"):
        sign(cards, card, unsold.code)
    with refused(StatusCode.FAILED_PRECONDITION, "NOT_FOR_MONEY"):
        sign(cards, card, for_points.code)
    freeze(cards, card)
    with refused(StatusCode.FAILED_PRECONDITION, "CARD_NOT_ACTIVE"):
        sign(cards, card)
    unknown = pb.Card(member_id=member, card_id=NO_CARD)
    for attempt in (sign, cancel_renewal):
        with refused(StatusCode.NOT_FOUND, "CARD_UNKNOWN"):
            attempt(cards, unknown)


def test_a_renewal_is_cancelled_free_and_at_any_moment(cards: Cards) -> None:
    card = buy(cards, fresh("member"), sell(cards))
    nothing = cancel_renewal(cards, card)
    assert not nothing.HasField("renewal")
    renewal = sign(cards, card)
    ended = cancel_renewal(cards, card)
    assert (ended.renewal.renewal_id, ended.renewal.status) == (
        renewal.renewal_id,
        pb.RENEWAL_STATUS_CANCELLED,
    )
    assert not ended.card.auto_renew
    assert list(ended.card.segments) == list(card.segments)
    assert not cancel_renewal(cards, card).HasField("renewal")
    assert sign(cards, card).renewal_id != renewal.renewal_id


def test_a_card_that_is_given_back_is_not_renewed(cards: Cards) -> None:
    card = buy(cards, fresh("member"), sell(cards, refund_policy=LENIENT))
    renewal = sign(cards, card)
    assert not give_back(cards, card).card.auto_renew
    with refused(StatusCode.FAILED_PRECONDITION, "RENEWAL_CLOSED"):
        notify(cards, card.member_id, renewal)


def test_a_notice_is_recorded_when_it_is_due_and_once(later: Cards) -> None:
    card = buy(later, member := fresh("member"), sell(later))
    renewal = sign(later, card)
    with refused(StatusCode.NOT_FOUND, "RENEWAL_UNKNOWN"):
        notify(later, member, pb.Renewal(renewal_id=NO_RENEWAL, amount_minor=1900))
    with refused(StatusCode.NOT_FOUND, "RENEWAL_UNKNOWN"):
        notify(later, fresh("another"), renewal)
    with refused(StatusCode.FAILED_PRECONDITION, "NOTICE_NOT_DUE"):
        notify(later, member, renewal)
    move(later, instant(renewal.notice_due_time))
    with refused(StatusCode.FAILED_PRECONDITION, "NOTICE_TIME_AHEAD"):
        notify(later, member, renewal, notice_time=stamp(later.now + timedelta(hours=1)))
    with refused(StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST"):
        notify(later, member, renewal, amount_minor=0)
    noticed = notify(later, member, renewal)
    assert noticed.status == pb.RENEWAL_STATUS_NOTIFIED
    assert instant(noticed.notice_time) == later.now
    with refused(StatusCode.FAILED_PRECONDITION, "NOTICE_RECORDED"):
        notify(later, member, renewal)


def test_what_was_announced_is_charged_at_its_time_and_renews_the_card(later: Cards) -> None:
    card = buy(later, member := fresh("member"), sold := sell(later))
    renewal = sign(later, card)
    move(later, instant(renewal.notice_due_time))
    put(later, a_product(code=sold.code, price_minor=9900))  # dearer since: what was signed is announced
    noticed = notify(later, member, renewal)
    order = read_order(later, pb.CardOrder(member_id=member, order_id=noticed.order_id))
    assert (order.amount_minor, order.renewal_id) == (1900, renewal.renewal_id)
    move(later, instant(noticed.charge_time) - TICK)
    early = pay(later, order)
    assert (early.outcome, early.reason) == (pb.PAYMENT_OUTCOME_REFUND_DUE, REFUND_DUE_REASON_NO_NOTICE)
    move(later, instant(noticed.charge_time))
    charged = pay(later, order)
    assert charged.outcome == pb.PAYMENT_OUTCOME_APPLIED
    assert [one.paid_minor for one in charged.card.segments] == [1900, 1900]
    assert charged.card.auto_renew
    with refused(StatusCode.FAILED_PRECONDITION, "RENEWAL_CLOSED"):
        notify(later, member, renewal)


def test_a_renewal_that_nobody_charged_in_time_ends(later: Cards) -> None:
    card = buy(later, member := fresh("member"), sell(later))
    renewal = sign(later, card)
    move(later, instant(renewal.charge_until_time))
    assert not read_card(later, card).auto_renew
    with refused(StatusCode.FAILED_PRECONDITION, "RENEWAL_CLOSED"):
        notify(later, member, renewal)


def test_no_more_is_charged_than_the_member_was_told(later: Cards) -> None:
    card = buy(later, member := fresh("member"), sell(later))
    renewal = sign(later, card)
    move(later, instant(renewal.notice_due_time))
    with refused(StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST") as refusal:
        notify(later, member, renewal, amount_minor=0)  # that could not be paid
    assert refusal.fields == {"amount_minor"}
    noticed = notify(later, member, renewal, amount_minor=1000)
    order = read_order(later, pb.CardOrder(member_id=member, order_id=noticed.order_id))
    assert (noticed.amount_minor, order.amount_minor) == (1000, 1000)
