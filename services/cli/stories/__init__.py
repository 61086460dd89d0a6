"""What `loyalty demo` plays: a brand's back end asks the services, and each scene says what must come out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from loyalty.cards.v1.cards_service_pb2_grpc import CardsServiceStub
from loyalty.groups.v1.groups_service_pb2_grpc import GroupsServiceStub
from loyalty.orders.v1.orders_pb2 import Order
from loyalty.orders.v1.orders_service_pb2 import ReportOrderPaidRequest
from loyalty.orders.v1.orders_service_pb2_grpc import OrdersServiceStub
from loyalty.points.v1 import points_service_pb2 as points_pb
from loyalty.points.v1.points_service_pb2_grpc import PointsServiceStub
from loyalty.referral.v1.referral_service_pb2_grpc import ReferralServiceStub

from services.chassis.clock import TestClock
from services.cli import clockwork
from services.cli.house import POLL, House

T = TypeVar("T")

ZONE = ZoneInfo("Asia/Shanghai")  # of the programmes
CALL_TIMEOUT = 10.0  # seconds
SETTLE_TIMEOUT = 120.0  # seconds that a month of orders may take to expire
PATIENCE = 60.0  # seconds that a story waits, in all, for what one service hears of another


@dataclass(frozen=True)
class Scene:
    """What was done, what the services said afterwards, and what the rules say."""

    what: str
    said: tuple[str, ...]
    expected: tuple[str, ...]

    @property
    def right(self) -> bool:
        """Whether the services say what the rules say."""
        return self.said == self.expected

    def __str__(self) -> str:
        return f"{self.what}: {' | '.join(self.said)}, expected {' | '.join(self.expected)}"


@dataclass(frozen=True)
class Stage:
    """A house with a test clock, and a channel into each of its services."""

    house: House
    clock: TestClock
    points: PointsServiceStub
    orders: OrdersServiceStub
    cards: CardsServiceStub
    groups: GroupsServiceStub
    referral: ReferralServiceStub

    @property
    def now(self) -> datetime:
        """Where the clock stands."""
        return self.clock.now()

    @property
    def now_stamp(self) -> Timestamp:
        """Where the clock stands, as a message says it."""
        stamp = Timestamp()
        stamp.FromDatetime(self.now)
        return stamp

    def move(self, to: datetime) -> None:
        """Moves the clock forward, and has what falls due be done. Raises Failure."""
        clockwork.move(self.clock, to, SETTLE_TIMEOUT, self.house.services)

    def wait_until(self, local: str) -> None:
        """The same, to a local time of the programmes' zone."""
        self.move(local_time(local))

    @staticmethod
    def call(method: Callable[..., T], request: Any) -> T:
        """Calls with a deadline. Raises grpc.RpcError."""
        return method(request, timeout=CALL_TIMEOUT)

    def available(self, member_id: str) -> int:
        """The points that a member can spend: none while points know nothing of it."""
        asked = points_pb.BatchGetBalancesRequest(member_ids=[member_id])
        return sum(one.available for one in self.call(self.points.BatchGetBalances, asked).balances)

    def pays(self, member_id: str, order_id: str, store_id: str, amount_minor: int) -> None:
        """Has a member pay a meal, which the brand reports to whoever wants to know."""
        order = Order(
            order_id=order_id,
            store_id=store_id,
            currency_code="CNY",
            total_minor=amount_minor,
            paid_time=self.now_stamp,
        )
        order.lines.add(line_id="1", category="MEALS", quantity=1, amount_minor=amount_minor)
        paid = ReportOrderPaidRequest(member_id=member_id, request_id=order_id, order=order)
        self.call(self.orders.ReportOrderPaid, paid)


def local_time(local: str) -> datetime:
    """The instant of a local time of the programmes' zone."""
    return datetime.fromisoformat(local).replace(tzinfo=ZONE).astimezone(UTC)


class Patience:
    """How long a story still waits."""

    def __init__(self) -> None:
        self._left = PATIENCE

    def once(self, read: Callable[[], T], expected: T) -> T:
        """What is read once it is as expected, or when patience is at its end."""
        while (found := read()) != expected and self._left > 0:
            time.sleep(POLL)
            self._left -= POLL
        return found


@contextmanager
def stage(house: House) -> Iterator[Stage]:
    """A stage for as long as the block runs; the house runs all services, and has a test clock."""
    assert house.clock is not None  # noqa: S101 - whoever plays started the house so
    where = house.describe()
    with (
        grpc.insecure_channel(where["points"]["grpc"]) as points,
        grpc.insecure_channel(where["cards"]["grpc"]) as cards,
        grpc.insecure_channel(where["groups"]["grpc"]) as groups,
        grpc.insecure_channel(where["referral"]["grpc"]) as referral,
    ):
        yield Stage(
            house,
            house.clock,
            PointsServiceStub(points),
            OrdersServiceStub(points),
            CardsServiceStub(cards),
            GroupsServiceStub(groups),
            ReferralServiceStub(referral),
        )
