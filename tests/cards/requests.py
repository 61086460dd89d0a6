"""A good request of each method, and the database as one number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message
from loyalty.cards.v1 import cards_service_pb2 as pb

from tests import database
from tests.cards.calls import (
    CUP,
    LENIENT,
    NO_CARD,
    NO_ORDER,
    NO_RENEWAL,
    RESTS,
    a_payment,
    a_product,
    an_order,
    stamp,
)
from tests.cards.till import benefit
from tests.support import Cards, fresh

# --- the database, as one number ----------------------------------------------------------------------


def fingerprint(cards: Cards) -> dict[str, str]:
    """A hash over all rows of each table, once every event is sent."""
    return database.fingerprint(cards.house, "cards", "sent_at IS NULL")


# --- a good request of each kind ----------------------------------------------------------------------

SET = benefit("set", "BUNDLE_PRICE", parts=[{"scope": "line.category == 'set'", "quantity": 2}])
NIGHT = benefit(
    "night", "PERCENT_OFF", value=40, dayparts=[{"start": "22:00", "end": "02:00", "weekdays": [5]}]
)


def _write(name: str, **fields: Any) -> Any:
    """A request of a write about a member of its own."""
    made = getattr(pb, f"{name}Request")
    return made(member_id=fresh("member"), request_id=fresh("request"), **fields)


def _read(name: str, **fields: Any) -> Any:
    return getattr(pb, f"{name}Request")(member_id=fresh("member"), **fields)


def a_put(_: Cards) -> pb.PutProductRequest:
    """A product with everything that one can have, only checked."""
    made = a_product(
        CUP,
        SET,
        NIGHT,
        names={"en": "Coffee"},
        points_price=300,
        upgrade_policy="UPGRADE_POLICY_NOW",
        refund_policy=LENIENT,
        freeze_policy=RESTS,
        purchase_limit=1,
        sales_cap={"limit": 500, "window": "SALES_WINDOW_YEAR"},
        eligible="member.tier == 'gold'",
        grace_days=7,
        gift_claim_days=10,
    )
    made.benefits[0].max_per_order = 1
    return pb.PutProductRequest(request_id=fresh("put"), product=made, validate_only=True)


def some_payment(cards: Cards) -> pb.ConfirmPaymentRequest:
    """A payment of an order that nobody knows."""
    order = pb.CardOrder(member_id=fresh("member"), order_id=NO_ORDER, amount_minor=1900, currency_code="CNY")
    return a_payment(cards, order)


_SERVICE = "/loyalty.cards.v1.CardsService/"
_MAKE: dict[str, Callable[[Cards], Message]] = {
    "ListProducts": lambda _: pb.ListProductsRequest(page_size=5, family="family"),
    "GetProduct": lambda _: pb.GetProductRequest(code="product", version=1),
    "PutProduct": a_put,
    "PlaceOrder": lambda _: _write("PlaceOrder", product_code="product", upgrade=pb.UPGRADE_NOW),
    "GetOrder": lambda _: _read("GetOrder", order_id=NO_ORDER),
    "ConfirmPayment": some_payment,
    "RecordRefundPaid": lambda cards: _write(
        "RecordRefundPaid",
        channel="wechat",
        payment_id="payment",
        refund_id="refund",
        amount_minor=1,
        currency_code="CNY",
        refund_time=stamp(cards.now),
    ),
    "CancelOrder": lambda _: _write("CancelOrder", order_id=NO_ORDER),
    "QuoteRefund": lambda _: _read("QuoteRefund", card_id=NO_CARD),
    "RefundCard": lambda _: _write("RefundCard", card_id=NO_CARD, expected_refund_minor=1),
    "FreezeCard": lambda _: _write("FreezeCard", card_id=NO_CARD, days=3),
    "ResumeCard": lambda _: _write("ResumeCard", card_id=NO_CARD),
    "GiftCard": lambda _: _write("GiftCard", product_code="product", pay_with=pb.PAY_WITH_POINTS),
    "ActivateGift": lambda _: _write("ActivateGift", claim_code="0" * 20),
    "ListMemberCards": lambda _: _read("ListMemberCards", page_size=5),
    "GetCard": lambda _: _read("GetCard", card_id=NO_CARD),
    "CheckEntitlements": lambda cards: _read(
        "CheckEntitlements", store_id="store", channel="app", at_time=stamp(cards.now)
    ),
    "QuoteOrder": lambda cards: _read("QuoteOrder", order=an_order(500, coffee=2), at_time=stamp(cards.now)),
    "RedeemBenefits": lambda _: _write("RedeemBenefits", order=an_order(500, coffee=2)),
    "ConfirmRedemptions": lambda _: _write("ConfirmRedemptions", order_id="order"),
    "ReverseRedemptions": lambda _: _write("ReverseRedemptions", order_id="order"),
    "SetAutoRenew": lambda cards: _write(
        "SetAutoRenew",
        card_id=NO_CARD,
        product_code="product",
        contract_id="contract",
        sign_time=stamp(cards.now),
    ),
    "RecordRenewalNotice": lambda cards: _write(
        "RecordRenewalNotice",
        renewal_id=NO_RENEWAL,
        notice_time=stamp(cards.now),
        amount_minor=1,
        medium="letter",
    ),
    "CancelAutoRenew": lambda _: _write("CancelAutoRenew", card_id=NO_CARD),
    "GetSavings": lambda _: _read("GetSavings", card_id=NO_CARD),
    "VerifyWechatPayNotification": lambda _: pb.VerifyWechatPayNotificationRequest(
        signature="c2lnbmF0dXJl", serial="PUB_KEY_ID_01", timestamp="1750000000", nonce="nonce", body=b"{}"
    ),
    "ExportMember": lambda _: _read("ExportMember", page_size=5),
    "EraseMember": lambda _: _write("EraseMember"),
}
GOOD = {_SERVICE + name: make for name, make in _MAKE.items()}
"""By method; every set field is then made bad in turn."""
