"""The same request again: every write gets its first answer and changes nothing more."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from google.protobuf.message import Message
from grpc import StatusCode
from loyalty.cards.v1 import cards_service_pb2 as pb

from services.cards.api import METHODS, READ
from tests.cards.calls import (
    CUP,
    LENIENT,
    RESTS,
    a_payment,
    a_product,
    an_order,
    buy,
    claim,
    freeze,
    give,
    give_back,
    instant,
    move,
    pay,
    place,
    redeem,
    sell,
    sign,
    stamp,
)
from tests.cards.requests import fingerprint
from tests.contract import call
from tests.support import Cards, fresh, refused

SERVICE = "/loyalty.cards.v1.CardsService/"
ASKERS = 8


@dataclass(frozen=True)
class Repeated:
    """A write that succeeds, and what makes it another one."""

    make: Callable[[Cards], Message]
    other: Callable[[Any], None]


def _card(cards: Cards, **said: Any) -> pb.Card:
    return buy(cards, fresh("member"), sell(cards, CUP, **said))


def _about(card: pb.Card, kind: Any, **fields: Any) -> Any:
    return kind(member_id=card.member_id, request_id=fresh("request"), card_id=card.card_id, **fields)


def _refund_paid(cards: Cards) -> pb.RecordRefundPaidRequest:
    order = place(cards, fresh("member"), sell(cards))
    payment = a_payment(cards, order, amount_minor=5)
    cards.call(cards.cards.ConfirmPayment, payment)
    return pb.RecordRefundPaidRequest(
        member_id=order.member_id,
        request_id=fresh("request"),
        channel=payment.channel,
        payment_id=payment.payment_id,
        refund_id=fresh("refund"),
        amount_minor=5,
        currency_code="CNY",
        refund_time=stamp(cards.now),
    )


def _cancelled(cards: Cards) -> pb.CancelOrderRequest:
    order = place(cards, fresh("member"), sell(cards))
    return pb.CancelOrderRequest(
        member_id=order.member_id, request_id=fresh("request"), order_id=order.order_id
    )


def _claimed(cards: Cards) -> pb.ActivateGiftRequest:
    gift = give(cards, fresh("giver"), sell(cards, gift_claim_days=1))
    pay(cards, gift.order)
    return pb.ActivateGiftRequest(
        member_id=fresh("taker"), request_id=fresh("request"), claim_code=gift.claim_code
    )


def _used(cards: Cards, kind: Any) -> Any:
    card = _card(cards)
    what = an_order(coffee=1)
    redeem(cards, card.member_id, what)
    return kind(member_id=card.member_id, request_id=fresh("request"), order_id=what.order_id)


def _resumed(cards: Cards) -> Message:
    card = freeze(cards, _card(cards, freeze_policy={**RESTS, "shortest_days": 0}))
    return _about(card, pb.ResumeCardRequest)  # type: ignore[no-any-return]


def _noticed(cards: Cards) -> pb.RecordRenewalNoticeRequest:
    card = _card(cards, period="P1D")  # so short that it is to be told of at once
    renewal = sign(cards, card)
    return pb.RecordRenewalNoticeRequest(
        member_id=card.member_id,
        request_id=fresh("request"),
        renewal_id=renewal.renewal_id,
        notice_time=stamp(cards.now),
        amount_minor=renewal.amount_minor,
        medium="letter",
    )


def _signed(cards: Cards) -> Message:
    return _about(  # type: ignore[no-any-return]
        _card(cards), pb.SetAutoRenewRequest, contract_id="contract", sign_time=stamp(cards.now)
    )


def _unsigned(cards: Cards) -> Message:
    card = _card(cards)
    sign(cards, card)
    return _about(card, pb.CancelAutoRenewRequest)  # type: ignore[no-any-return]


def _ordered(cards: Cards, kind: Any, **said: Any) -> Any:
    sold = sell(cards, points_price=5, **said)
    return kind(member_id=fresh("member"), request_id=fresh("request"), product_code=sold.code)


def _by_points(request: Any) -> None:
    request.pay_with = pb.PAY_WITH_POINTS


def _of_another(field: str, value: Any) -> Callable[[Any], None]:
    return lambda request: setattr(request, field, value)


WRITES = {
    "PutProduct": Repeated(
        lambda _: pb.PutProductRequest(request_id=fresh("put"), product=a_product(CUP)),
        lambda request: request.product.MergeFrom(pb.Product(price_minor=5)),
    ),
    "PlaceOrder": Repeated(lambda cards: _ordered(cards, pb.PlaceOrderRequest), _by_points),
    "ConfirmPayment": Repeated(
        lambda cards: a_payment(cards, place(cards, fresh("member"), sell(cards))),
        _of_another("payment_id", "another"),
    ),
    "RecordRefundPaid": Repeated(_refund_paid, _of_another("refund_id", "another")),
    "CancelOrder": Repeated(_cancelled, _of_another("order_id", "ord_" + "1" * 32)),
    "RefundCard": Repeated(
        lambda cards: _about(
            _card(cards, refund_policy=LENIENT), pb.RefundCardRequest, expected_refund_minor=1900
        ),
        _of_another("expected_refund_minor", 1),
    ),
    "FreezeCard": Repeated(
        lambda cards: _about(_card(cards, freeze_policy=RESTS), pb.FreezeCardRequest, days=5),
        _of_another("days", 6),
    ),
    "ResumeCard": Repeated(_resumed, _of_another("card_id", "card_" + "1" * 32)),
    "GiftCard": Repeated(lambda cards: _ordered(cards, pb.GiftCardRequest, gift_claim_days=9), _by_points),
    "ActivateGift": Repeated(_claimed, _of_another("claim_code", "1" * 20)),
    "RedeemBenefits": Repeated(
        lambda cards: pb.RedeemBenefitsRequest(
            member_id=_card(cards).member_id, request_id=fresh("request"), order=an_order(coffee=1)
        ),
        _of_another("expected_saved_minor", 1),
    ),
    "ConfirmRedemptions": Repeated(
        lambda cards: _used(cards, pb.ConfirmRedemptionsRequest), _of_another("order_id", "another")
    ),
    "ReverseRedemptions": Repeated(
        lambda cards: _used(cards, pb.ReverseRedemptionsRequest), _of_another("order_id", "another")
    ),
    "SetAutoRenew": Repeated(_signed, _of_another("contract_id", "another")),
    "RecordRenewalNotice": Repeated(_noticed, _of_another("medium", "another")),
    "CancelAutoRenew": Repeated(_unsigned, _of_another("card_id", "card_" + "1" * 32)),
    "EraseMember": Repeated(
        lambda cards: pb.EraseMemberRequest(member_id=_card(cards).member_id, request_id=fresh("request")),
        lambda _: None,  # it has nothing else
    ),
}
EACH_WRITE = pytest.mark.parametrize("name", WRITES)


def test_every_write_is_repeated_here() -> None:
    writes = {method.removeprefix(SERVICE) for method, row in METHODS.items() if row.scope != READ}
    assert set(WRITES) == writes - {
        "ExportMember",
        "VerifyWechatPayNotification",
    }  # a read; has no request_id


@EACH_WRITE
def test_a_write_that_is_repeated_gets_the_first_answer_and_changes_nothing(cards: Cards, name: str) -> None:
    request = WRITES[name].make(cards)
    first = call(cards, SERVICE + name, request)
    before = fingerprint(cards)
    again = call(cards, SERVICE + name, request)
    assert again.SerializeToString(deterministic=True) == first.SerializeToString(deterministic=True)
    assert fingerprint(cards) == before
    other = type(request)()
    other.CopyFrom(request)
    WRITES[name].other(other)
    if other != request:
        with refused(StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED") as refusal:
            call(cards, SERVICE + name, other)
        assert refusal.metadata == {"request_id": request.request_id}  # type: ignore[attr-defined]
        assert fingerprint(cards) == before


@EACH_WRITE
def test_a_write_that_is_sent_many_times_at_once_happens_once(cards: Cards, name: str) -> None:
    request = WRITES[name].make(cards)
    with ThreadPoolExecutor(ASKERS) as pool:
        answers = list(pool.map(lambda _: call(cards, SERVICE + name, request), range(ASKERS)))
    assert len({answer.SerializeToString(deterministic=True) for answer in answers}) == 1


def test_a_request_id_is_its_members_and_no_methods(cards: Cards) -> None:
    sold, request_id = sell(cards), fresh("request")
    one, other = (
        place(cards, fresh("member"), sold, request_id),
        place(cards, fresh("member"), sold, request_id),
    )
    assert one.order_id != other.order_id
    cancelled = pb.CancelOrderRequest(member_id=one.member_id, request_id=request_id, order_id=one.order_id)
    with refused(StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED"):
        cards.call(cards.cards.CancelOrder, cancelled)


def test_a_refusal_is_not_remembered(cards: Cards) -> None:
    gift = give(cards, fresh("giver"), sell(cards, gift_claim_days=1))
    taker, request_id = fresh("taker"), fresh("claim")
    with refused(StatusCode.FAILED_PRECONDITION, "GIFT_NOT_PAID"):
        claim(cards, taker, gift.claim_code, request_id)
    pay(cards, gift.order)
    assert claim(cards, taker, gift.claim_code, request_id).member_id == taker


def test_a_first_answer_comes_far_later_before_any_rule(later: Cards) -> None:
    card = buy(later, fresh("member"), sell(later, refund_policy=LENIENT))
    back = give_back(later, card, request_id := fresh("refund"), expected_refund_minor=1900)
    sold = sell(later, gift_claim_days=1)
    gift = give(later, fresh("giver"), sold, asked := fresh("gift"))
    move(later, instant(card.end_time) + timedelta(days=800))
    assert give_back(later, card, request_id, expected_refund_minor=1900) == back
    assert give(later, gift.order.member_id, sold, asked) == gift
