"""Orders of cards, and what becomes of payments: each is applied, or due to be paid back; none is lost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from services.cards.domain.products import Product
from services.cards.errors import (
    NotEligible,
    NotForMoney,
    NotForPoints,
    OrderPaid,
    OrderSettling,
    ProductWithdrawn,
    PurchaseLimit,
    SoldOut,
)

PAY_WITHIN = timedelta(minutes=15)
HOLD_BEYOND = timedelta(
    hours=24
)  # points stay set aside after the pay deadline; then the points service decides


class OrderStatus(StrEnum):
    """Where an order stands."""

    PENDING_PAYMENT = "PENDING_PAYMENT"
    SETTLING = "SETTLING"
    """Its points are set aside and are being spent; this never lapses by time."""
    PAID = "PAID"
    CANCELLED = "CANCELLED"
    EXPIRED = "EXPIRED"


@dataclass(frozen=True, slots=True)
class Demand:
    """What, besides the product, decides whether a member may order it."""

    eligible: bool
    """Whether the product's condition holds for the member."""
    purchases: int
    """The member's orders of it that are paid, or still can be."""
    sold: int
    """Orders of all members in the window of the sales cap that are paid, or still can be."""


def check_sale(product: Product, demand: Demand, *, by_points: bool) -> int:
    """The price, in points or minor units.

    Raises ProductWithdrawn, NotForPoints, NotForMoney, NotEligible, PurchaseLimit, SoldOut.
    """
    if product.withdrawn:
        raise ProductWithdrawn
    price = product.points_price if by_points else product.price_minor
    if not price:
        raise NotForPoints if by_points else NotForMoney
    if not demand.eligible:
        raise NotEligible
    if product.purchase_limit and demand.purchases >= product.purchase_limit:
        raise PurchaseLimit(limit=product.purchase_limit)
    if product.sales_cap and demand.sold >= product.sales_cap[0]:
        raise SoldOut(limit=product.sales_cap[0])
    return price


class RefundReason(StrEnum):
    """Why money that was taken has to be paid back."""

    WRONG_AMOUNT = "WRONG_AMOUNT"
    WRONG_CURRENCY = "WRONG_CURRENCY"
    ORDER_UNKNOWN = "ORDER_UNKNOWN"
    ORDER_EXPIRED = "ORDER_EXPIRED"
    ORDER_CANCELLED = "ORDER_CANCELLED"
    ALREADY_PAID = "ALREADY_PAID"
    SOLD_OUT = "SOLD_OUT"
    NO_NOTICE = "NO_NOTICE"
    CARD_REFUNDED = "CARD_REFUNDED"


@dataclass(frozen=True, slots=True)
class Order:
    """The purchase of one period. By money, or by points and then with amount and currency empty."""

    status: OrderStatus
    """As it is kept; `status_at` is what it is."""
    pay_deadline: datetime
    """From this instant on it is not paid in time."""
    amount_minor: int = 0
    currency_code: str = ""
    amount_points: int = 0
    end_reason: str = ""

    @property
    def by_points(self) -> bool:
        """Whether points pay it."""
        return not self.currency_code

    def status_at(self, at: datetime) -> OrderStatus:
        """Where it stands at an instant: what waits for its payment expires at the deadline."""
        if self.status is OrderStatus.PENDING_PAYMENT and at >= self.pay_deadline:
            return OrderStatus.EXPIRED
        return self.status

    @property
    def hold_until(self) -> datetime:
        """Until when the points service is asked to set points aside."""
        return self.pay_deadline + HOLD_BEYOND


@dataclass(frozen=True, slots=True)
class Payment:
    """What a pay channel told."""

    amount_minor: int
    currency_code: str
    paid: datetime


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What, besides the order, decides about a payment that is right in itself."""

    slot_left: bool = True
    """Whether the sales cap has a place for the order: its own, or a free one."""
    chargeable: bool = True
    """False for the order of a renewal that may not be charged when it was paid."""


def refund_reason(order: Order | None, payment: Payment, around: Circumstances) -> RefundReason | None:
    """Why a payment has to be paid back; None where it pays the order.

    It is in time by when it was paid, not by when that was told.
    """
    if order is None:
        return RefundReason.ORDER_UNKNOWN
    if order.status is OrderStatus.PAID:
        return RefundReason.ALREADY_PAID
    if order.status is OrderStatus.CANCELLED:
        return RefundReason.ORDER_CANCELLED
    if payment.currency_code != order.currency_code:  # also where points pay it
        return RefundReason.WRONG_CURRENCY
    if payment.amount_minor != order.amount_minor:
        return RefundReason.WRONG_AMOUNT
    if payment.paid >= order.pay_deadline:
        return RefundReason.ORDER_EXPIRED
    if not around.chargeable:
        return RefundReason.NO_NOTICE
    if not around.slot_left:
        return RefundReason.SOLD_OUT
    return None


def paid(order: Order) -> Order:
    """The order once it is paid, by money or by points captured."""
    return replace(order, status=OrderStatus.PAID)


def cancel(order: Order, at: datetime) -> Order:
    """Cancels an order that is not paid; one that is over stays as it is. Raises OrderSettling, OrderPaid."""
    match order.status_at(at):
        case OrderStatus.SETTLING:
            raise OrderSettling
        case OrderStatus.PAID:
            raise OrderPaid
        case OrderStatus.PENDING_PAYMENT:
            return replace(order, status=OrderStatus.CANCELLED, end_reason="CANCELLED")
        case _:
            return order


class Settlement(StrEnum):
    """What becomes of points that were set aside for an order."""

    CAPTURE = "CAPTURE"
    RELEASE = "RELEASE"


def hold_placed(order: Order, at: datetime, *, slot_left: bool) -> tuple[Order, Settlement | None]:
    """Points are set aside: spent where the order waits for them, released where it no longer does.

    The same news about an order that was decided says nothing new.
    """
    match order.status_at(at):
        case OrderStatus.PENDING_PAYMENT if slot_left:
            return replace(order, status=OrderStatus.SETTLING), Settlement.CAPTURE
        case OrderStatus.PENDING_PAYMENT:
            sold_out = replace(order, status=OrderStatus.CANCELLED, end_reason="SOLD_OUT")
            return sold_out, Settlement.RELEASE
        case OrderStatus.EXPIRED | OrderStatus.CANCELLED:
            return order, Settlement.RELEASE
        case _:
            return order, None


def hold_ended(order: Order, reason: str) -> Order:
    """Points were refused or came back: there will be no card. An order that is paid or over stays."""
    if order.status in (OrderStatus.PENDING_PAYMENT, OrderStatus.SETTLING):
        return replace(order, status=OrderStatus.CANCELLED, end_reason=reason)
    return order


def hold_captured(order: Order) -> tuple[Order, bool]:
    """Points were spent: the order is paid, whatever the time. Says whether this is news."""
    if order.status is OrderStatus.PAID:
        return order, False
    return paid(order), True
