"""Orders and payments: what is in time, what has to be paid back and why, and how points settle."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cards.domain.payments import (
    HOLD_BEYOND,
    Circumstances,
    Demand,
    Order,
    OrderStatus,
    Payment,
    RefundReason,
    Settlement,
    cancel,
    check_sale,
    hold_captured,
    hold_ended,
    hold_placed,
    paid,
    refund_reason,
)
from services.cards.domain.periods import Period
from services.cards.domain.products import Product, SalesWindow
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

DEADLINE = datetime(2027, 3, 1, 4, 15, tzinfo=UTC)
TICK = timedelta(microseconds=1)
PENDING = Order(OrderStatus.PENDING_PAYMENT, DEADLINE, 1900, "CNY")
BY_POINTS = Order(OrderStatus.PENDING_PAYMENT, DEADLINE, amount_points=80)
RIGHT = Payment(1900, "CNY", DEADLINE - TICK)
USUAL = Circumstances()


@pytest.mark.parametrize(
    ("order", "payment", "around", "reason"),
    [
        (PENDING, RIGHT, USUAL, None),
        (None, RIGHT, USUAL, RefundReason.ORDER_UNKNOWN),
        (PENDING, replace(RIGHT, paid=DEADLINE), USUAL, RefundReason.ORDER_EXPIRED),
        (PENDING, replace(RIGHT, amount_minor=1899), USUAL, RefundReason.WRONG_AMOUNT),
        (PENDING, replace(RIGHT, amount_minor=1901), USUAL, RefundReason.WRONG_AMOUNT),
        (PENDING, replace(RIGHT, currency_code="HKD"), USUAL, RefundReason.WRONG_CURRENCY),
        (BY_POINTS, RIGHT, USUAL, RefundReason.WRONG_CURRENCY),
        (replace(PENDING, status=OrderStatus.PAID), RIGHT, USUAL, RefundReason.ALREADY_PAID),
        (replace(PENDING, status=OrderStatus.CANCELLED), RIGHT, USUAL, RefundReason.ORDER_CANCELLED),
        (replace(PENDING, status=OrderStatus.EXPIRED), RIGHT, USUAL, None),  # swept, and paid in time
        (PENDING, RIGHT, Circumstances(slot_left=False), RefundReason.SOLD_OUT),
        (PENDING, RIGHT, Circumstances(chargeable=False), RefundReason.NO_NOTICE),
        (
            PENDING,
            replace(RIGHT, paid=DEADLINE),
            Circumstances(chargeable=False),
            RefundReason.ORDER_EXPIRED,
        ),
    ],
)
def test_a_payment_is_applied_or_due_to_be_paid_back(
    order: Order | None, payment: Payment, around: Circumstances, reason: RefundReason | None
) -> None:
    assert refund_reason(order, payment, around) is reason


@given(
    st.sampled_from(OrderStatus),
    st.integers(1, 3),
    st.sampled_from(["CNY", "USD"]),
    st.integers(-2, 2),
    st.builds(Circumstances, st.booleans(), st.booleans()),
)
def test_only_the_right_payment_in_time_pays_an_order(
    status: OrderStatus, amount: int, currency: str, ticks: int, around: Circumstances
) -> None:
    order = Order(status, DEADLINE, 2, "CNY")
    payment = Payment(amount, currency, DEADLINE + ticks * TICK)
    right = amount == 2 and currency == "CNY" and ticks < 0 and around == Circumstances()
    open_ = status not in (OrderStatus.PAID, OrderStatus.CANCELLED)
    assert (refund_reason(order, payment, around) is None) == (right and open_)


def test_an_order_expires_at_its_deadline_by_time_alone_but_not_while_it_settles() -> None:
    assert PENDING.status_at(DEADLINE - TICK) is OrderStatus.PENDING_PAYMENT
    assert PENDING.status_at(DEADLINE) is OrderStatus.EXPIRED
    settling, _ = hold_placed(BY_POINTS, DEADLINE - TICK, slot_left=True)
    assert settling.status_at(DEADLINE + 365 * timedelta(days=1)) is OrderStatus.SETTLING
    assert paid(PENDING).status_at(DEADLINE) is OrderStatus.PAID


def test_what_is_paid_or_settles_cannot_be_cancelled_and_what_is_over_stays() -> None:
    assert cancel(PENDING, DEADLINE - TICK).status is OrderStatus.CANCELLED
    assert cancel(PENDING, DEADLINE) == PENDING
    cancelled = cancel(PENDING, DEADLINE - TICK)
    assert cancel(cancelled, DEADLINE) == cancelled
    with pytest.raises(OrderPaid):
        cancel(paid(PENDING), DEADLINE)
    with pytest.raises(OrderSettling):
        cancel(replace(BY_POINTS, status=OrderStatus.SETTLING), DEADLINE)


def test_points_are_spent_before_the_card_is_activated() -> None:
    assert BY_POINTS.by_points
    assert BY_POINTS.hold_until == DEADLINE + HOLD_BEYOND
    settling, settlement = hold_placed(BY_POINTS, DEADLINE - TICK, slot_left=True)
    assert (settling.status, settlement) == (OrderStatus.SETTLING, Settlement.CAPTURE)
    assert hold_placed(settling, DEADLINE, slot_left=True) == (settling, None)
    done, news = hold_captured(settling)
    assert (done.status, news) == (OrderStatus.PAID, True)
    assert hold_captured(done) == (done, False)
    assert hold_placed(done, DEADLINE, slot_left=True) == (done, None)
    assert hold_ended(done, "HOLD_RELEASED") == done


def test_points_set_aside_too_late_or_for_nothing_are_released() -> None:
    assert hold_placed(BY_POINTS, DEADLINE, slot_left=True) == (BY_POINTS, Settlement.RELEASE)
    cancelled = cancel(BY_POINTS, DEADLINE - TICK)
    assert hold_placed(cancelled, DEADLINE - TICK, slot_left=True) == (cancelled, Settlement.RELEASE)
    sold_out, settlement = hold_placed(BY_POINTS, DEADLINE - TICK, slot_left=False)
    assert (sold_out.status, settlement) == (OrderStatus.CANCELLED, Settlement.RELEASE)


def test_points_refused_or_returned_end_the_order() -> None:
    for order in (BY_POINTS, replace(BY_POINTS, status=OrderStatus.SETTLING)):
        ended = hold_ended(order, "INSUFFICIENT_POINTS")
        assert (ended.status, ended.end_reason) == (OrderStatus.CANCELLED, "INSUFFICIENT_POINTS")


KING = Product("king", 1, "king", {}, 1900, "CNY", 80, Period(months=1), ())
LIMITED = replace(KING, purchase_limit=2, sales_cap=(500, SalesWindow.YEAR))
ANYBODY = Demand(eligible=True, purchases=0, sold=0)


def test_a_product_is_sold_for_what_it_costs_to_whom_it_is_for() -> None:
    assert check_sale(KING, ANYBODY, by_points=False) == 1900
    assert check_sale(KING, ANYBODY, by_points=True) == 80
    assert check_sale(LIMITED, replace(ANYBODY, purchases=1, sold=499), by_points=False) == 1900


@pytest.mark.parametrize(
    ("product", "demand", "by_points", "error"),
    [
        (replace(KING, withdrawn=True), ANYBODY, False, ProductWithdrawn),
        (replace(KING, points_price=0), ANYBODY, True, NotForPoints),
        (replace(KING, price_minor=0), ANYBODY, False, NotForMoney),
        (KING, replace(ANYBODY, eligible=False), False, NotEligible),
        (LIMITED, replace(ANYBODY, purchases=2), False, PurchaseLimit),
        (LIMITED, replace(ANYBODY, sold=500), False, SoldOut),
    ],
)
def test_what_is_not_sold_is_refused(
    product: Product, demand: Demand, by_points: bool, error: type[Exception]
) -> None:
    with pytest.raises(error):
        check_sale(product, demand, by_points=by_points)
