"""Calls about cards, as tests write them: products put, orders paid, benefits used; and time."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from loyalty.cards.v1 import cards_service_pb2 as pb
from loyalty.orders.v1.orders_pb2 import Order
from loyalty.points.v1.points_events_pb2 import HoldCaptured, HoldPlaced
from loyalty.points.v1.points_service_pb2 import HOLD_STATE_CAPTURED, HOLD_STATE_PLACED, Hold

from tests.cards.till import basket, benefit, product
from tests.journeys.publisher import Publisher
from tests.support import Cards, eventually, fresh

CUP = benefit("coffee", limit=1)  # one coffee a day at 8.00
LENIENT = {"cooling_off_days": 7, "otherwise": "REFUND_RULE_PRO_RATA"}
RESTS = {"shortest_days": 2, "longest_days": 30, "count": 1}
NO_CARD, NO_ORDER, NO_RENEWAL = ("card_" + "0" * 32, "ord_" + "0" * 32, "rnw_" + "0" * 32)


def stamp(at: datetime) -> Timestamp:
    """An instant as the contract writes it."""
    made = Timestamp()
    made.FromDatetime(at)
    return made


def instant(at: Timestamp) -> datetime:
    """An instant that the contract wrote."""
    return at.ToDatetime(tzinfo=UTC)


def wait(cards: Cards, **duration: float) -> None:
    """Lets time pass."""
    assert cards.house.clock is not None
    cards.house.clock.set(cards.now + timedelta(**duration))


def move(cards: Cards, at: datetime) -> None:
    """Sets the house's clock."""
    assert cards.house.clock is not None
    cards.house.clock.set(at)


# --- buying -------------------------------------------------------------------------------------------


def a_product(*benefits: dict[str, Any], **said: Any) -> pb.Product:
    """A month of a card of its own family for 19.00, unless said otherwise."""
    code = said.pop("code", None) or fresh("product")
    made = product(*benefits, code=code, **{"family": code, "period": "P1M", **said})
    made.ClearField("version")
    return made


def put(cards: Cards, made: pb.Product, request_id: str = "", **how: Any) -> pb.Product:
    """Puts a product's next version."""
    request = pb.PutProductRequest(request_id=request_id or fresh("put"), product=made, **how)
    return cards.call(cards.cards.PutProduct, request)


def sell(cards: Cards, *benefits: dict[str, Any], **said: Any) -> pb.Product:
    """Puts a product that no test has put before."""
    return put(cards, a_product(*benefits, **said))


def place(
    cards: Cards, member: str, sold: pb.Product | str, request_id: str = "", **how: Any
) -> pb.CardOrder:
    """Orders a period."""
    request = pb.PlaceOrderRequest(
        member_id=member,
        request_id=request_id or fresh("place"),
        product_code=sold if isinstance(sold, str) else sold.code,
        **how,
    )
    return cards.call(cards.cards.PlaceOrder, request)


def a_payment(cards: Cards, order: pb.CardOrder, **said: Any) -> pb.ConfirmPaymentRequest:
    """A payment of what an order costs, made now, unless said otherwise."""
    told: dict[str, Any] = {
        "member_id": order.member_id,
        "request_id": fresh("confirm"),
        "order_id": order.order_id,
        "channel": "wechat",
        "payment_id": fresh("payment"),
        "amount_minor": order.amount_minor,
        "currency_code": order.currency_code,
        "paid_time": stamp(cards.now),
    }
    return pb.ConfirmPaymentRequest(**told | said)


def pay(cards: Cards, order: pb.CardOrder, **said: Any) -> pb.ConfirmPaymentResponse:
    """Tells of a payment."""
    return cards.call(cards.cards.ConfirmPayment, a_payment(cards, order, **said))


def buy(cards: Cards, member: str, sold: pb.Product | str, **how: Any) -> pb.Card:
    """Orders a period and pays it."""
    paid = pay(cards, place(cards, member, sold, **how))
    assert paid.outcome == pb.PAYMENT_OUTCOME_APPLIED
    return paid.card


def cancel(cards: Cards, order: pb.CardOrder, request_id: str = "") -> pb.CardOrder:
    """Cancels an order."""
    request = pb.CancelOrderRequest(
        member_id=order.member_id, request_id=request_id or fresh("cancel"), order_id=order.order_id
    )
    return cards.call(cards.cards.CancelOrder, request)


def read_order(cards: Cards, order: pb.CardOrder) -> pb.CardOrder:
    """Reads an order."""
    request = pb.GetOrderRequest(member_id=order.member_id, order_id=order.order_id)
    return cards.call(cards.cards.GetOrder, request)


def give(
    cards: Cards, member: str, sold: pb.Product, request_id: str = "", **how: Any
) -> pb.GiftCardResponse:
    """Orders a period for somebody else."""
    request = pb.GiftCardRequest(
        member_id=member, request_id=request_id or fresh("gift"), product_code=sold.code, **how
    )
    return cards.call(cards.cards.GiftCard, request)


def claim(cards: Cards, member: str, code: str, request_id: str = "") -> pb.Card:
    """Claims a gift."""
    request = pb.ActivateGiftRequest(
        member_id=member, request_id=request_id or fresh("claim"), claim_code=code
    )
    return cards.call(cards.cards.ActivateGift, request)


# --- points, as the points service tells --------------------------------------------------------------


def hold(cards: Cards, order: pb.CardOrder) -> None:
    """Has the points of an order set aside: it is settling."""
    kept = Hold(reference_id=order.order_id, amount=order.amount_points, state=HOLD_STATE_PLACED)
    tell(cards, HoldPlaced(**_head(cards, order, 1), hold=kept))
    eventually(lambda: read_order(cards, order).status == pb.CARD_ORDER_STATUS_SETTLING)


def capture(cards: Cards, order: pb.CardOrder) -> None:
    """Has the points of an order spent: it is paid."""
    kept = Hold(reference_id=order.order_id, amount=order.amount_points, state=HOLD_STATE_CAPTURED)
    tell(cards, HoldCaptured(**_head(cards, order, 2), hold=kept))
    eventually(lambda: read_order(cards, order).status == pb.CARD_ORDER_STATUS_PAID)


def _head(cards: Cards, order: pb.CardOrder, version: int) -> dict[str, Any]:
    return {"member_id": order.member_id, "occur_time": stamp(cards.now), "epoch": 1, "version": version}


def tell(cards: Cards, message: Message) -> None:
    """Publishes an event, as its owner would."""

    async def publish() -> None:
        async with Publisher(cards.house.nats.url, "points") as publisher:
            await publisher.publish(message)

    asyncio.run(publish())


# --- a card -------------------------------------------------------------------------------------------


def read_card(cards: Cards, card: pb.Card) -> pb.Card:
    """Reads a card as of now."""
    request = pb.GetCardRequest(member_id=card.member_id, card_id=card.card_id)
    return cards.call(cards.cards.GetCard, request)


def quote_refund(cards: Cards, card: pb.Card) -> pb.RefundQuote:
    """What giving a card back would give."""
    request = pb.QuoteRefundRequest(member_id=card.member_id, card_id=card.card_id)
    return cards.call(cards.cards.QuoteRefund, request)


def give_back(cards: Cards, card: pb.Card, request_id: str = "", **expected: int) -> pb.RefundCardResponse:
    """Gives a card back."""
    request = pb.RefundCardRequest(
        member_id=card.member_id, request_id=request_id or fresh("refund"), card_id=card.card_id, **expected
    )
    return cards.call(cards.cards.RefundCard, request)


def freeze(cards: Cards, card: pb.Card, days: int = 0, request_id: str = "") -> pb.Card:
    """Rests a card."""
    request = pb.FreezeCardRequest(
        member_id=card.member_id, request_id=request_id or fresh("freeze"), card_id=card.card_id, days=days
    )
    return cards.call(cards.cards.FreezeCard, request)


def resume(cards: Cards, card: pb.Card, request_id: str = "") -> pb.Card:
    """Ends a rest."""
    request = pb.ResumeCardRequest(
        member_id=card.member_id, request_id=request_id or fresh("resume"), card_id=card.card_id
    )
    return cards.call(cards.cards.ResumeCard, request)


# --- benefits -----------------------------------------------------------------------------------------


def an_order(delivery: int = 0, price: int = 2000, order_id: str = "", **pieces: int) -> Order:
    """An order of so many pieces by category, each for 20.00 unless said otherwise."""
    return basket(order_id or fresh("order"), delivery=delivery, price=price, **pieces).message


def entitled(cards: Cards, member: str, **said: Any) -> dict[str, pb.Entitlement]:
    """What a member may use, by the benefit's name."""
    request = pb.CheckEntitlementsRequest(member_id=member, **said)
    found = cards.call(cards.cards.CheckEntitlements, request)
    return {one.benefit_code: one for one in found.entitlements}


def quote(cards: Cards, member: str, what: Order, **said: Any) -> pb.Quote:
    """The best price of an order."""
    return cards.call(cards.cards.QuoteOrder, pb.QuoteOrderRequest(member_id=member, order=what, **said))


def redeem(
    cards: Cards, member: str, what: Order, expected: int = 0, request_id: str = ""
) -> pb.RedeemBenefitsResponse:
    """Reserves what lowers an order."""
    request = pb.RedeemBenefitsRequest(
        member_id=member,
        request_id=request_id or fresh("redeem"),
        order=what,
        expected_saved_minor=expected,
    )
    return cards.call(cards.cards.RedeemBenefits, request)


def confirm(cards: Cards, member: str, order_id: str, request_id: str = "") -> list[pb.Redemption]:
    """Makes an order's uses final."""
    request = pb.ConfirmRedemptionsRequest(
        member_id=member, request_id=request_id or fresh("confirm"), order_id=order_id
    )
    return list(cards.call(cards.cards.ConfirmRedemptions, request).redemptions)


def reverse(cards: Cards, member: str, order_id: str, request_id: str = "") -> list[pb.Redemption]:
    """Gives an order's uses back."""
    request = pb.ReverseRedemptionsRequest(
        member_id=member, request_id=request_id or fresh("reverse"), order_id=order_id
    )
    return list(cards.call(cards.cards.ReverseRedemptions, request).redemptions)


# --- renewing -----------------------------------------------------------------------------------------


def sign(cards: Cards, card: pb.Card, product_code: str = "", request_id: str = "") -> pb.Renewal:
    """Signs the renewal of a card."""
    request = pb.SetAutoRenewRequest(
        member_id=card.member_id,
        request_id=request_id or fresh("sign"),
        card_id=card.card_id,
        product_code=product_code,
        contract_id=fresh("contract"),
        sign_time=stamp(cards.now),
    )
    return cards.call(cards.cards.SetAutoRenew, request)


def notify(cards: Cards, member: str, renewal: pb.Renewal, request_id: str = "", **said: Any) -> pb.Renewal:
    """Tells that the member was told of a renewal: now, and of its amount, unless said otherwise."""
    told: dict[str, Any] = {
        "member_id": member,
        "request_id": request_id or fresh("notice"),
        "renewal_id": renewal.renewal_id,
        "notice_time": stamp(cards.now),
        "amount_minor": renewal.amount_minor,
        "medium": "wechat_template",
    }
    return cards.call(cards.cards.RecordRenewalNotice, pb.RecordRenewalNoticeRequest(**told | said))


def cancel_renewal(cards: Cards, card: pb.Card, request_id: str = "") -> pb.CancelAutoRenewResponse:
    """Ends a signed renewal."""
    request = pb.CancelAutoRenewRequest(
        member_id=card.member_id, request_id=request_id or fresh("unsign"), card_id=card.card_id
    )
    return cards.call(cards.cards.CancelAutoRenew, request)
