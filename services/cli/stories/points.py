"""One member as the brand's back end drives it: an order, a hold, a refund, and what expires a year later."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from loyalty.orders.v1.orders_pb2 import Order, Refund, RefundedLine, RefundedLines
from loyalty.points.v1 import points_service_pb2 as pb

from services.cli.stories import Scene, Stage

MEMBER = "ann"
COLUMNS = ("available", "held")


def checkout(stage: Stage) -> Iterator[Scene]:
    """Forty yuan earn forty points; 25 are held and 20 of them spent; ten yuan are refunded."""
    order = _order(stage.now)
    earn = pb.EarnPointsRequest(member_id=MEMBER, request_id="story-1", order=order)
    stage.call(stage.points.EarnPoints, earn)
    yield _scene(stage, "an order of 40.00 yuan", available=40, held=0)
    hold = pb.HoldPointsRequest(member_id=MEMBER, request_id="story-2", amount=25, reference_id="checkout-1")
    hold.expire_time.FromDatetime(stage.now + timedelta(minutes=15))
    hold_id = stage.call(stage.points.HoldPoints, hold).hold_id
    yield _scene(stage, "25 points held in the checkout", available=15, held=25)
    capture = pb.CaptureHoldRequest(member_id=MEMBER, request_id="story-3", hold_id=hold_id, amount=20)
    stage.call(stage.points.CaptureHold, capture)
    yield _scene(stage, "20 of them captured, 5 came back", available=20, held=0)
    refund = pb.RefundOrderRequest(member_id=MEMBER, request_id="story-4", refund=_refund(order))
    stage.call(stage.points.RefundOrder, refund)
    yield _scene(stage, "the fries refunded, 10.00 yuan", available=10, held=0)


def a_year_later(stage: Stage) -> Iterator[Scene]:
    """A second before the points end they are all there, and at midnight they are gone."""
    ends = stage.call(stage.points.GetBalance, pb.GetBalanceRequest(member_id=MEMBER)).expiring[0]
    expiry = ends.expire_time.ToDatetime(tzinfo=UTC)
    stage.move(expiry - timedelta(seconds=1))
    yield _scene(stage, "a second before they expire", available=10, held=0)
    stage.move(expiry)
    yield _scene(stage, "expired", available=0, held=0)


def _scene(stage: Stage, what: str, *, available: int, held: int) -> Scene:
    balance = stage.call(stage.points.GetBalance, pb.GetBalanceRequest(member_id=MEMBER))
    return Scene(what, (str(balance.available), str(balance.held)), (str(available), str(held)))


def _order(paid: datetime) -> Order:
    order = Order(order_id="story-order", currency_code="CNY", total_minor=4_000)
    order.lines.add(line_id="burger", category="BURGERS", quantity=1, amount_minor=3_000)
    order.lines.add(line_id="fries", category="SIDES", quantity=1, amount_minor=1_000)
    order.paid_time.FromDatetime(paid)
    return order


def _refund(order: Order) -> Refund:
    fries = RefundedLines(lines=[RefundedLine(line_id="fries", amount_minor=1_000)])
    return Refund(order_id=order.order_id, refund_id="story-refund", refund_time=order.paid_time, lines=fries)
