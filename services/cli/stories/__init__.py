"""What `loyalty demo` plays: a brand's back end asks the services, and each scene says what must come out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import grpc
from loyalty.cards.v1.cards_service_pb2_grpc import CardsServiceStub
from loyalty.points.v1.points_service_pb2_grpc import PointsServiceStub

from services.chassis.clock import TestClock
from services.cli import clockwork
from services.cli.house import House

T = TypeVar("T")

CALL_TIMEOUT = 10.0  # seconds
SETTLE_TIMEOUT = 120.0  # seconds that a month of orders may take to expire


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
    cards: CardsServiceStub

    @property
    def now(self) -> datetime:
        """Where the clock stands."""
        return self.clock.now()

    def move(self, to: datetime) -> None:
        """Moves the clock forward, and has what falls due be done. Raises Failure."""
        clockwork.move(self.clock, to, SETTLE_TIMEOUT, self.house.services)

    @staticmethod
    def call(method: Callable[..., T], request: Any) -> T:
        """Calls with a deadline. Raises grpc.RpcError."""
        return method(request, timeout=CALL_TIMEOUT)


@contextmanager
def stage(house: House) -> Iterator[Stage]:
    """A stage for as long as the block runs; the house runs both services, and has a test clock."""
    assert house.clock is not None  # noqa: S101 - whoever plays started the house so
    where = house.describe()
    with (
        grpc.insecure_channel(where["points"]["grpc"]) as points,
        grpc.insecure_channel(where["cards"]["grpc"]) as cards,
    ):
        yield Stage(house, house.clock, PointsServiceStub(points), CardsServiceStub(cards))
