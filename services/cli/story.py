"""One member as the brand's back end drives it: an order, a hold, a refund, and what expires a year later."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
from loyalty.orders.v1.orders_pb2 import Order, Refund, RefundedLine, RefundedLines
from loyalty.points.v1 import points_service_pb2 as pb
from loyalty.points.v1.points_service_pb2_grpc import PointsServiceStub

from services.chassis.clock import TestClock
from services.cli import clockwork
from services.cli.house import House

MEMBER = "ann"
CALL_TIMEOUT = 10.0  # seconds
SETTLE_TIMEOUT = 120.0  # seconds that a month of orders may take to expire


@dataclass(frozen=True)
class Scene:
    """What was done, and what the member owned afterwards."""

    what: str
    available: int
    held: int
    expected: tuple[int, int]

    @property
    def right(self) -> bool:
        """Whether the service says what the rules say."""
        return (self.available, self.held) == self.expected


class Teller:
    """Plays the scenes, in order."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._clock = TestClock(Path(house.describe()["test_clock"]))
        self.scenes: list[Scene] = []

    def checkout(self) -> None:
        """Forty yuan earn forty points; 25 are held and 20 of them spent; ten yuan are refunded."""
        with grpc.insecure_channel(self._house.describe()["points"]["grpc"]) as channel:
            stub = PointsServiceStub(channel)

            def scene(what: str, expected: tuple[int, int]) -> None:
                self._scene(stub, what, expected)

            order = _order(self._clock.now())
            stub.EarnPoints(
                pb.EarnPointsRequest(member_id=MEMBER, request_id="story-1", order=order),
                timeout=CALL_TIMEOUT,
            )
            scene("an order of 40.00 yuan", (40, 0))
            hold_id = self._hold(stub)
            scene("25 points held in the checkout", (15, 25))
            stub.CaptureHold(
                pb.CaptureHoldRequest(member_id=MEMBER, request_id="story-3", hold_id=hold_id, amount=20),
                timeout=CALL_TIMEOUT,
            )
            scene("20 of them captured, 5 came back", (20, 0))
            stub.RefundOrder(
                pb.RefundOrderRequest(member_id=MEMBER, request_id="story-4", refund=_refund(order)),
                timeout=CALL_TIMEOUT,
            )
            scene("the fries refunded, 10.00 yuan", (10, 0))

    def a_year_later(self) -> None:
        """A week before the points end they are all there, and at midnight they are gone."""
        with grpc.insecure_channel(self._house.describe()["points"]["grpc"]) as channel:
            stub = PointsServiceStub(channel)
            ends = stub.GetBalance(pb.GetBalanceRequest(member_id=MEMBER), timeout=CALL_TIMEOUT).expiring[0]
            expiry = ends.expire_time.ToDatetime(tzinfo=UTC)
            self._move(expiry - timedelta(seconds=1))
            self._scene(stub, "a second before they expire", (10, 0))
            self._move(expiry)
            self._scene(stub, "expired", (0, 0))

    def _hold(self, stub: PointsServiceStub) -> str:
        request = pb.HoldPointsRequest(
            member_id=MEMBER, request_id="story-2", amount=25, reference_id="checkout-1"
        )
        request.expire_time.FromDatetime(self._clock.now() + timedelta(minutes=15))
        return stub.HoldPoints(request, timeout=CALL_TIMEOUT).hold_id

    def _move(self, to: datetime) -> None:
        clockwork.move(self._clock, to, SETTLE_TIMEOUT, self._house.services)

    def _scene(self, stub: PointsServiceStub, what: str, expected: tuple[int, int]) -> None:
        balance = stub.GetBalance(pb.GetBalanceRequest(member_id=MEMBER), timeout=CALL_TIMEOUT)
        self.scenes.append(Scene(what, balance.available, balance.held, expected))


def _order(paid: datetime) -> Order:
    order = Order(order_id="story-order", currency_code="CNY", total_minor=4_000)
    order.lines.add(line_id="burger", category="BURGERS", quantity=1, amount_minor=3_000)
    order.lines.add(line_id="fries", category="SIDES", quantity=1, amount_minor=1_000)
    order.paid_time.FromDatetime(paid)
    return order


def _refund(order: Order) -> Refund:
    fries = RefundedLines(lines=[RefundedLine(line_id="fries", amount_minor=1_000)])
    return Refund(order_id=order.order_id, refund_id="story-refund", refund_time=order.paid_time, lines=fries)
