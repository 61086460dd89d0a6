"""Stubs, orders and refusals, as tests write them."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Self, TypeVar

import grpc
import yaml
from google.protobuf.json_format import ParseDict
from google.rpc import error_details_pb2, status_pb2
from loyalty.activities.v1.activities_service_pb2_grpc import ActivitiesServiceStub
from loyalty.cards.v1.cards_service_pb2_grpc import CardsServiceStub
from loyalty.groups.v1.groups_service_pb2_grpc import GroupsServiceStub
from loyalty.orders.v1.orders_pb2 import Order
from loyalty.orders.v1.orders_service_pb2_grpc import OrdersServiceStub
from loyalty.points.v1 import points_service_pb2 as pb
from loyalty.points.v1.points_service_pb2_grpc import PointsServiceStub
from loyalty.referral.v1.referral_service_pb2_grpc import ReferralServiceStub

from services.cli.house import House

T = TypeVar("T")

TIMEOUT = 20.0  # seconds; generous, for slow machines
_DELIVERED = Path(__file__).parents[1] / "deploy/programmes"

# One point for each yuan, growth alike, double on coffee lines, twenty for a task at most once a day.
PROGRAMME: dict[str, Any] = {
    "time_zone": "Asia/Shanghai",
    "currency_code": "CNY",
    "expiry": {"rolling_months": 12},
    "earn_rules": [
        {
            "rule_id": "base",
            "scope": "RULE_SCOPE_ORDER",
            "unit": "UNIT_POINTS",
            "per": {"amount_minor": 100, "points": 1},
            "stack": "RULE_STACK_ADD",
        },
        {
            "rule_id": "growth",
            "scope": "RULE_SCOPE_ORDER",
            "unit": "UNIT_GROWTH",
            "per": {"amount_minor": 100, "points": 1},
            "stack": "RULE_STACK_ADD",
        },
        {
            "rule_id": "coffee",
            "scope": "RULE_SCOPE_LINE",
            "unit": "UNIT_POINTS",
            "when": "line.category == 'coffee'",
            "multiplier": "2",
            "stack": "RULE_STACK_ADD",
        },
        {
            "rule_id": "task",
            "scope": "RULE_SCOPE_ACTIVITY",
            "unit": "UNIT_POINTS",
            "when": "activity.kind == 'app_task_done'",
            "fixed": 20,
            "stack": "RULE_STACK_ADD",
            "cap_per_day": 20,
        },
    ],
}

_numbers = itertools.count(1)


def fresh(prefix: str) -> str:
    """A name nobody used before, in any process."""
    return f"{prefix}-{uuid.uuid4().hex[:12]}-{next(_numbers)}"


def eventually(look: Callable[[], bool]) -> None:
    """Waits until something has happened."""
    deadline = time.monotonic() + 3 * TIMEOUT
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def defects(house: House) -> list[str]:
    """What the services of a house logged as defects of their own."""
    logs = [log.read_text(errors="replace") for log in house.data.glob("*.log")]
    return [line for log in logs for line in log.splitlines() if '"event": "defect"' in line]


def delivered(name: str) -> dict[str, Any]:
    """What a programme says that is delivered, by service."""
    said: dict[str, Any] = yaml.safe_load((_DELIVERED / f"{name}.yaml").read_text(encoding="utf-8"))
    return said


def order(total_minor: int, at: datetime, *, order_id: str | None = None, category: str = "burger") -> Order:
    """An order of one line."""
    made = Order(
        order_id=order_id or fresh("order"),
        store_id="store-1",
        city="杭州",
        channel="app",
        currency_code="CNY",
        total_minor=total_minor,
    )
    made.lines.add(line_id="1", sku="sku-1", category=category, quantity=1, amount_minor=total_minor)
    made.paid_time.FromDatetime(at)
    return made


class Caller:
    """Blocking calls on one channel, to a service or a replica of it; each has a deadline."""

    def __init__(self, house: House, token: str | None, service: str) -> None:
        self.house = house
        self.channel = grpc.insecure_channel(house.describe()[service]["grpc"])
        self.metadata = [("authorization", f"Bearer {token}")] if token else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    @property
    def now(self) -> datetime:
        """The house's business time."""
        assert self.house.clock is not None
        return self.house.clock.now()

    def call(self, method: Callable[..., T], request: Any) -> T:
        """Calls with the token and a deadline."""
        return method(request, timeout=TIMEOUT, metadata=self.metadata)


class Points(Caller):
    """The points service."""

    def __init__(self, house: House, token: str | None = None, *, service: str = "points") -> None:
        super().__init__(house, token, service)
        self.points = PointsServiceStub(self.channel)
        self.orders = OrdersServiceStub(self.channel)
        self.activities = ActivitiesServiceStub(self.channel)

    def earn(self, member: str, what: Order, request_id: str | None = None) -> pb.Transaction:
        """Earns an order."""
        request = pb.EarnPointsRequest(member_id=member, request_id=request_id or fresh("earn"), order=what)
        return self.call(self.points.EarnPoints, request)

    def redeem(self, member: str, amount: int, request_id: str | None = None) -> pb.Transaction:
        """Redeems points."""
        request = pb.RedeemPointsRequest(
            member_id=member, request_id=request_id or fresh("redeem"), amount=amount
        )
        return self.call(self.points.RedeemPoints, request)

    def adjust(
        self, member: str, amount: int, unit: int = pb.UNIT_POINTS, request_id: str | None = None
    ) -> pb.Transaction:
        """Adjusts a balance."""
        request = pb.AdjustPointsRequest(
            member_id=member,
            request_id=request_id or fresh("adjust"),
            unit=unit,  # type: ignore[arg-type]
            amount=amount,
            reason="a test",
        )
        return self.call(self.points.AdjustPoints, request)

    def balance(self, member: str) -> pb.Balance:
        """Reads a balance."""
        return self.call(self.points.GetBalance, pb.GetBalanceRequest(member_id=member))


class Cards(Caller):
    """The cards service."""

    def __init__(self, house: House, token: str | None = None, *, service: str = "cards") -> None:
        super().__init__(house, token, service)
        self.cards = CardsServiceStub(self.channel)


class Groups(Caller):
    """The groups service."""

    def __init__(self, house: House, token: str | None = None, *, service: str = "groups") -> None:
        super().__init__(house, token, service)
        self.groups = GroupsServiceStub(self.channel)


class Referral(Caller):
    """The referral service."""

    def __init__(self, house: House, token: str | None = None, *, service: str = "referral") -> None:
        super().__init__(house, token, service)
        self.referral = ReferralServiceStub(self.channel)


def apply_programme(house: House, programme: dict[str, Any] | None = None) -> pb.Programme:
    """Puts a programme, by default PROGRAMME."""
    with Points(house) as points:
        request = pb.PutProgrammeRequest(
            request_id=fresh("programme"), programme=ParseDict(programme or PROGRAMME, pb.Programme())
        )
        return points.call(points.points.PutProgramme, request)


@dataclass
class Refusal:
    """What a call failed with."""

    code: grpc.StatusCode | None = None
    reason: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    fields: set[str] = field(default_factory=set)
    message: str = ""
    retry: bool = False


def read_refusal(error: grpc.RpcError) -> Refusal:
    """Takes a rich status apart."""
    refusal = Refusal(code=error.code(), message=error.details() or "")
    trailing: Any = error.trailing_metadata()
    for key, value in trailing or ():
        if key != "grpc-status-details-bin":
            continue
        for detail in status_pb2.Status.FromString(value).details:
            info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
            if detail.Unpack(info):
                refusal.reason, refusal.metadata = info.reason, dict(info.metadata)
            elif detail.Unpack(bad):
                refusal.fields = {violation.field for violation in bad.field_violations}
            else:
                refusal.retry = True
    return refusal


def outcome(attempt: Callable[[], Any]) -> grpc.StatusCode:
    """How a call ended."""
    try:
        attempt()
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@contextmanager
def refused(code: grpc.StatusCode, reason: str) -> Iterator[Refusal]:
    """The block's call fails with this code and reason; yields the rest."""
    seen = Refusal()
    try:
        yield seen
    except grpc.RpcError as error:
        found = read_refusal(error)
        seen.__dict__.update(found.__dict__)
        assert (found.code, found.reason) == (code, reason), found
    else:
        raise AssertionError(f"not refused with {reason}")
