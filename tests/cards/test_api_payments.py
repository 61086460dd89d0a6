"""Payments over a real channel: each is stored and answered once, and none is lost."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from grpc import StatusCode
from loyalty.cards.v1 import cards_service_pb2 as pb
from loyalty.cards.v1.cards_events_pb2 import RefundDueReason

from services.cards.wechat import NONCE, SERIAL, SIGNATURE, TIMESTAMP
from services.chassis.clock import wall
from services.cli.house import House
from tests.cards import test_wechat as platform
from tests.cards.calls import (
    CUP,
    LENIENT,
    NO_ORDER,
    a_payment,
    buy,
    cancel,
    capture,
    give_back,
    hold,
    instant,
    move,
    pay,
    place,
    quote_refund,
    read_card,
    read_order,
    sell,
    stamp,
)
from tests.database import ask
from tests.support import Cards, fresh, refused

SECOND = timedelta(seconds=1)


def reason(paid: pb.ConfirmPaymentResponse) -> str:
    """Why a payment has to be paid back."""
    assert paid.outcome == pb.PAYMENT_OUTCOME_REFUND_DUE
    return RefundDueReason.Name(paid.reason).removeprefix("REFUND_DUE_REASON_")


def confirm(cards: Cards, request: pb.ConfirmPaymentRequest) -> pb.ConfirmPaymentResponse:
    return cards.call(cards.cards.ConfirmPayment, request)


def pay_back(cards: Cards, payment: pb.ConfirmPaymentRequest, **said: Any) -> pb.RecordRefundPaidResponse:
    """Tells that a payment was paid back, whole unless said otherwise."""
    told: dict[str, Any] = {
        "member_id": payment.member_id,
        "request_id": fresh("back"),
        "channel": payment.channel,
        "payment_id": payment.payment_id,
        "refund_id": fresh("refund"),
        "amount_minor": payment.amount_minor,
        "currency_code": payment.currency_code,
        "refund_time": stamp(cards.now),
    }
    return cards.call(cards.cards.RecordRefundPaid, pb.RecordRefundPaidRequest(**told | said))


# --- what becomes of a payment ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"amount_minor": 1899}, "WRONG_AMOUNT"),
        ({"amount_minor": 1901}, "WRONG_AMOUNT"),
        ({"currency_code": "USD"}, "WRONG_CURRENCY"),
        ({"order_id": NO_ORDER}, "ORDER_UNKNOWN"),
        ({"order_id": "anything"}, "ORDER_UNKNOWN"),
    ],
    ids=["too little", "too much", "dollars", "nobody's order", "no order at all"],
)
def test_a_payment_that_is_not_what_was_asked_is_stored_and_to_be_paid_back(
    cards: Cards, said: dict[str, Any], why: str
) -> None:
    order = place(cards, fresh("member"), sell(cards, CUP))
    payment = a_payment(cards, order, **said)
    answer = confirm(cards, payment)
    assert reason(answer) == why
    assert answer.HasField("order") == (why != "ORDER_UNKNOWN")
    assert not answer.HasField("card")
    assert read_order(cards, order) == order
    pay_back(cards, payment)
    assert pay(cards, order).outcome == pb.PAYMENT_OUTCOME_APPLIED


def test_a_payment_of_a_member_whom_nobody_knows_is_stored(cards: Cards) -> None:
    order = pb.CardOrder(member_id=fresh("nobody"), order_id="x", amount_minor=5, currency_code="CNY")
    assert reason(pay(cards, order)) == "ORDER_UNKNOWN"
    export = cards.call(cards.cards.ExportMember, pb.ExportMemberRequest(member_id=order.member_id))
    assert [(one.order_id, one.amount_minor) for one in export.payments] == [("x", 5)]


def test_what_ended_or_is_paid_is_not_paid_again(cards: Cards) -> None:
    member, sold = fresh("member"), sell(cards)
    ended, paid = place(cards, member, sold), place(cards, member, sold)
    cancel(cards, ended)
    assert reason(pay(cards, ended)) == "ORDER_CANCELLED"
    card = pay(cards, paid).card
    assert reason(pay(cards, paid)) == "ALREADY_PAID"
    assert read_card(cards, card) == card


def test_in_time_is_what_was_paid_in_time_however_late_it_is_told(later: Cards) -> None:
    sold = sell(later)
    early, late = place(later, fresh("member"), sold), place(later, fresh("member"), sold)
    deadline = instant(late.pay_deadline_time)
    move(later, deadline + timedelta(hours=5))
    told = pay(later, early, paid_time=stamp(deadline - SECOND))
    assert (told.outcome, told.order.status) == (pb.PAYMENT_OUTCOME_APPLIED, pb.CARD_ORDER_STATUS_PAID)
    answer = pay(later, late, paid_time=stamp(deadline))
    assert reason(answer) == "ORDER_EXPIRED"
    assert answer.order.status == pb.CARD_ORDER_STATUS_EXPIRED


def test_a_place_that_somebody_else_has_by_now_is_not_paid_late(later: Cards) -> None:
    sold = sell(later, sales_cap={"limit": 1, "window": "SALES_WINDOW_EVER"})
    late = place(later, fresh("member"), sold)
    move(later, instant(late.pay_deadline_time))
    buy(later, fresh("member"), sold)
    assert reason(pay(later, late, paid_time=late.create_time)) == "SOLD_OUT"


def test_the_same_payment_gets_the_first_answer_under_any_request_id(cards: Cards) -> None:
    order = place(cards, fresh("member"), sell(cards))
    payment = a_payment(cards, order)
    first = confirm(cards, payment)
    assert confirm(cards, payment) == first
    payment.request_id = fresh("another")
    assert confirm(cards, payment) == first
    assert len(first.card.segments) == 1
    assert read_card(cards, first.card) == first.card


@pytest.mark.parametrize(
    "change",
    [
        {"amount_minor": 1901},
        {"order_id": NO_ORDER},
        {"currency_code": "USD"},
        {"member_id": "another"},
        {"paid_time": {"seconds": 5}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_payment_that_is_told_otherwise_is_refused(cards: Cards, change: dict[str, Any]) -> None:
    order = place(cards, fresh("member"), sell(cards))
    payment = a_payment(cards, order)
    first = confirm(cards, payment)
    told = {"channel": payment.channel, "payment_id": payment.payment_id, "paid_time": payment.paid_time}
    with refused(StatusCode.ALREADY_EXISTS, "PAYMENT_ALREADY_TOLD") as refusal:
        pay(cards, order, **told | change)
    assert refusal.metadata == {"channel": payment.channel, "payment_id": payment.payment_id}
    assert read_card(cards, first.card) == first.card
    told["channel"] = "alipay"  # whose ids are its own
    assert reason(pay(cards, order, **told)) == "ALREADY_PAID"


# --- money that goes back -----------------------------------------------------------------------------


def test_a_refund_is_closed_once_and_by_what_was_due(cards: Cards) -> None:
    payment = a_payment(cards, place(cards, fresh("member"), sell(cards)), amount_minor=1000)
    with refused(StatusCode.NOT_FOUND, "REFUND_UNKNOWN"):
        pay_back(cards, payment)
    confirm(cards, payment)
    for wrong in ({"amount_minor": 999}, {"currency_code": "USD"}):
        with refused(StatusCode.FAILED_PRECONDITION, "REFUND_AMOUNT_MISMATCH") as refusal:
            pay_back(cards, payment, **wrong)
        assert refusal.metadata == {"due": "1000"}
    with refused(StatusCode.NOT_FOUND, "REFUND_UNKNOWN"):
        pay_back(cards, payment, member_id=fresh("another"))
    assert instant(pay_back(cards, payment).close_time) == cards.now
    with refused(StatusCode.FAILED_PRECONDITION, "REFUND_CLOSED"):
        pay_back(cards, payment)


def test_of_a_payment_that_was_applied_nothing_is_due_until_its_card_is_given_back(cards: Cards) -> None:
    order = place(cards, fresh("member"), sell(cards, refund_policy=LENIENT))
    payment = a_payment(cards, order)
    card = confirm(cards, payment).card
    with refused(StatusCode.NOT_FOUND, "REFUND_UNKNOWN"):
        pay_back(cards, payment)
    assert give_back(cards, card).quote.refund_minor == 1900
    pay_back(cards, payment)


# --- paid by points -----------------------------------------------------------------------------------


def test_points_that_are_being_spent_hold_their_order_and_their_card(cards: Cards) -> None:
    member, family = fresh("member"), fresh("family")
    said: dict[str, Any] = {
        "family": family,
        "upgrade_policy": "UPGRADE_POLICY_NOW",
        "refund_policy": LENIENT,
    }
    month = sell(cards, points_price=300, **said)
    quarter = sell(cards, points_price=900, **said)
    by_points: dict[str, Any] = {"pay_with": pb.PAY_WITH_POINTS}
    first = place(cards, member, month, **by_points)
    assert reason(pay(cards, first, amount_minor=1900, currency_code="CNY")) == "WRONG_CURRENCY"
    hold(cards, first)
    with refused(StatusCode.FAILED_PRECONDITION, "ORDER_SETTLING"):
        cancel(cards, first)
    capture(cards, first)
    card = pb.Card(member_id=member, card_id=read_order(cards, first).card_id)
    assert [one.paid_points for one in read_card(cards, card).segments] == [300]
    with refused(StatusCode.FAILED_PRECONDITION, "UPGRADE_UNIT_MISMATCH"):
        place(cards, member, quarter, upgrade=pb.UPGRADE_NOW)
    upgrade = place(cards, member, quarter, upgrade=pb.UPGRADE_NOW, **by_points)
    assert (upgrade.amount_points, upgrade.credit) == (600, 300)
    hold(cards, upgrade)
    with refused(StatusCode.FAILED_PRECONDITION, "ORDER_SETTLING"):
        place(cards, member, quarter, upgrade=pb.UPGRADE_NOW, **by_points)
    with refused(StatusCode.FAILED_PRECONDITION, "ORDER_SETTLING"):
        give_back(cards, card)
    capture(cards, upgrade)
    quoted = quote_refund(cards, card)
    assert (quoted.refund_points, quoted.refund_minor) == (900, 0)
    assert give_back(cards, card, expected_refund_points=900).quote == quoted


# --- WeChat Pay ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wechat(house: House, data: Path, front: str) -> Iterator[Cards]:
    """A further process of the house's service, which knows the platform's key."""
    folder = data / f"keys-{front}"
    folder.mkdir()
    pem = platform.PLATFORM.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / f"{platform.KEY_ID}.pem").write_bytes(pem)
    process = house.start_replica(
        "cards",
        wechat_keys=str(folder),
        wechat_merchant_id=platform.MERCHANT,
        wechat_app_ids=json.dumps([platform.APP]),
        wechat_api_v3_key=platform.SEAL_KEY.decode(),
    )
    house.wait_ready(process)
    with Cards(house, service=process) as cards:
        yield cards
    house.process(process).stop()


def told(cards: Cards, order: pb.CardOrder, **said: Any) -> pb.VerifyWechatPayNotificationRequest:
    """What WeChat tells of a payment: signed now, by the wall's clock."""
    payment = platform.PAYMENT | {
        "out_trade_no": order.order_id.removeprefix("ord_"),
        "transaction_id": fresh("wx"),
        "success_time": cards.now.isoformat(),
        "amount": {"total": order.amount_minor, "currency": order.currency_code},
    }
    return signed(platform.to_json(platform.envelope(platform.sealed(platform.to_json(payment | said)))))


def signed(body: bytes) -> pb.VerifyWechatPayNotificationRequest:
    """A body as the platform signs it, each time under another nonce."""
    note = platform.signed(body, at=wall(), nonce=os.urandom(16).hex())
    return pb.VerifyWechatPayNotificationRequest(
        signature=note.headers[SIGNATURE],
        serial=note.headers[SERIAL],
        timestamp=note.headers[TIMESTAMP],
        nonce=note.headers[NONCE],
        body=note.body,
    )


def verify(cards: Cards, request: pb.VerifyWechatPayNotificationRequest) -> pb.ConfirmPaymentResponse:
    return cards.call(cards.cards.VerifyWechatPayNotification, request)


def test_what_wechat_tells_pays_the_order_once(wechat: Cards) -> None:
    member = fresh("member")
    order = place(wechat, member, sell(wechat))
    note = told(wechat, order)
    answer = verify(wechat, note)
    assert answer.outcome == pb.PAYMENT_OUTCOME_APPLIED
    assert answer.order == read_order(wechat, order)
    assert answer.card == read_card(wechat, answer.card)
    assert verify(wechat, note) == answer == verify(wechat, signed(note.body))
    assert len(read_card(wechat, answer.card).segments) == 1


def test_a_wrong_amount_told_by_wechat_is_to_be_paid_back(wechat: Cards) -> None:
    order = place(wechat, fresh("member"), sell(wechat))
    note = told(wechat, order, amount={"total": 5, "currency": "CNY"})
    assert reason(verify(wechat, note)) == "WRONG_AMOUNT"


def test_wechat_and_the_brand_may_tell_of_the_same_payment(wechat: Cards) -> None:
    order = place(wechat, fresh("member"), sell(wechat))
    payment = a_payment(wechat, order)
    first = confirm(wechat, payment)
    assert verify(wechat, told(wechat, order, transaction_id=payment.payment_id)) == first
    late = (wechat.now + SECOND).isoformat()
    otherwise = told(wechat, order, transaction_id=payment.payment_id, success_time=late)
    with refused(StatusCode.ALREADY_EXISTS, "PAYMENT_ALREADY_TOLD") as refusal:
        verify(wechat, otherwise)
    assert refusal.metadata == {"channel": "wechat", "payment_id": payment.payment_id}


def test_what_wechat_tells_of_no_order_is_left_to_the_brand(wechat: Cards) -> None:
    payment_id = fresh("wx")
    for order_id in (NO_ORDER, "somebody-elses"):
        order = pb.CardOrder(order_id=order_id, amount_minor=5, currency_code="CNY")
        with refused(StatusCode.NOT_FOUND, "CARD_ORDER_UNKNOWN"):
            verify(wechat, told(wechat, order, transaction_id=payment_id))
    assert not ask(wechat.house, "cards", "SELECT FROM payments WHERE payment_id = $1", payment_id)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda note: note.MergeFrom(type(note)(nonce=note.nonce + "0")),
        lambda note: note.MergeFrom(type(note)(timestamp=str(int(note.timestamp) - 301))),
        lambda note: note.MergeFrom(type(note)(serial="another")),
        lambda note: note.MergeFrom(type(note)(body=note.body + b" ")),
        lambda note: note.MergeFrom(type(note)(signature=note.signature[:-4] + "AAA=")),
    ],
    ids=["nonce", "timestamp", "serial", "body", "signature"],
)
def test_what_wechat_did_not_sign_is_refused_and_changes_nothing(
    wechat: Cards, spoil: Callable[[Any], None]
) -> None:
    order = place(wechat, fresh("member"), sell(wechat))
    note = told(wechat, order)
    spoil(note)
    with refused(StatusCode.PERMISSION_DENIED, "NOTIFICATION_REFUSED"):
        verify(wechat, note)
    assert read_order(wechat, order) == order


def test_a_merchant_that_is_not_ours_is_refused(wechat: Cards) -> None:
    order = place(wechat, fresh("member"), sell(wechat))
    with refused(StatusCode.PERMISSION_DENIED, "NOTIFICATION_REFUSED"):
        verify(wechat, told(wechat, order, mchid="1900000000"))


def test_a_channel_that_is_not_set_up_refuses_everything(cards: Cards) -> None:
    order = place(cards, fresh("member"), sell(cards))
    with refused(StatusCode.PERMISSION_DENIED, "NOTIFICATION_REFUSED"):
        verify(cards, told(cards, order))
