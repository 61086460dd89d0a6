"""How what the replay asks for gets to the points service: by call, once or twice, or by event as well."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import date, datetime
from enum import StrEnum
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import grpc
import nats
import stamina
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from loyalty.orders.v1.orders_pb2 import (
    Order,
    OrderPaid,
    OrderRefunded,
    Refund,
    RefundedLine,
    RefundedLines,
)
from loyalty.points.v1 import points_service_pb2 as pb
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.errors import NotFoundError

from services.cli import deeds
from services.cli.place import Failure

if TYPE_CHECKING:  # the generated stub has this name only for type checkers
    from loyalty.points.v1.points_service_pb2_grpc import PointsServiceAsyncStub

IN_FLIGHT = 256  # members with a call under way
CALL_TIMEOUT = 10.0  # seconds of one attempt
GIVE_UP = 180.0  # seconds until a call that keeps failing ends the replay
BALANCES = 1_000  # members a call
POLL = 0.05  # seconds between looks
CONSUMER = "points"  # the service's, on the brand's stream
SOURCE = "loyalty/replay"  # whose events they are

_TRY_AGAIN = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.UNKNOWN,  # what grpcio says of a connection that broke in an answer
    grpc.StatusCode.CANCELLED,
}


class ReplayError(Failure):
    """The replay cannot go on; the message says why."""


class Delivery(StrEnum):
    """How orders and refunds are delivered. The books must be the same."""

    ONCE = "once"
    """By call, each member's in the order of their times."""
    TWICE = "twice"
    """Every call twice at the same time, orders and refunds under another request_id."""
    BOTH = "both"
    """Orders and refunds by event and by call at the same time, whichever comes first."""
    SHUFFLED = "shuffled"
    """By call, each member's orders of a day in no order."""


@dataclass
class Counts:
    """What was done."""

    orders: int = 0
    redemptions: int = 0
    too_few: int = 0
    """Redemptions and holds that were due and not sent: the member had too few points."""
    holds: int = 0
    captures: int = 0
    releases: int = 0
    refunds: int = 0
    events_first: int = 0
    """Orders and refunds whose event came before the call."""
    retries: int = 0


@dataclass
class Sender:
    """Sends a day's orders, and what their members do besides. `tick` hears of orders done."""

    stub: PointsServiceAsyncStub
    plan: deeds.Plan
    way: Delivery
    events: Publisher | None
    tick: Callable[[int], None]
    counts: Counts = field(default_factory=Counts)
    places: dict[str, int] = field(default_factory=dict)
    """By order: the number of its transaction among its member's."""
    redeemed: dict[str, int] = field(default_factory=dict)
    """By member: what was spent, by the transactions that the service answered with."""
    _placed: dict[str, str] = field(default_factory=dict)
    """By the name of a hold that was placed: its id."""

    def __post_init__(self) -> None:
        self._free = asyncio.Semaphore(IN_FLIGHT)

    async def send(self, day: date, orders: Iterable[tuple[str, Order]]) -> None:
        """Sends what happens on a day, for each member in turn. Raises ReplayError, grpc.RpcError."""
        by_member: dict[str, list[Order]] = {}
        for member_id, order in orders:
            by_member.setdefault(member_id, []).append(order)
        later = self.plan.later.get(day, {})
        at = deeds.evening(day)
        try:
            async with asyncio.TaskGroup() as group:
                for member_id in [*by_member, *(m for m in later if m not in by_member)]:
                    theirs = by_member.get(member_id, [])
                    group.create_task(self._send_member(member_id, theirs, later.get(member_id, []), at))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from failures

    async def _send_member(
        self, member_id: str, orders: list[Order], later: list[deeds.Close | deeds.Refund], at: datetime
    ) -> None:
        async with self._free:
            if self.way is Delivery.SHUFFLED:
                orders = sorted(orders, key=lambda order: sha256(order.order_id.encode()).digest())
            for order in orders:
                earned = await self._deliver(self.stub.EarnPoints, earn_request(member_id, order))
                self.counts.orders += 1
                self.places[order.order_id] = earned.seq
                available = earned.balance.available
                for deed in self.plan.at_once.get(order.order_id, []):
                    available = await self._spend(member_id, order, deed, available)
                self.tick(1)
            for each in later:
                if isinstance(each, deeds.Refund):
                    await self._deliver(self.stub.RefundOrder, refund_request(member_id, each, at))
                    self.counts.refunds += 1
                else:
                    await self._close(member_id, each)

    async def _spend(
        self, member_id: str, order: Order, deed: deeds.Redeem | deeds.Hold, available: int
    ) -> int:
        """Redeems or holds if there are points enough, and says what is available then.

        Decided by the first answer to what came before, which a second replay gets again: a refusal is not
        kept, so asking blindly could be refused once and granted the next time.
        """
        amount = available if deed.amount is None else deed.amount
        if not 0 < amount <= available:
            self.counts.too_few += 1
            return available
        common = {"member_id": member_id, "request_id": deed.name, "reference_id": order.order_id}
        if isinstance(deed, deeds.Redeem):
            redeem = pb.RedeemPointsRequest(**common, amount=amount, occur_time=order.paid_time)
            answer = await self._deliver(self.stub.RedeemPoints, redeem)
            self._count_redeemed(member_id, answer)
            self.counts.redemptions += 1
        else:
            until = Timestamp()
            until.FromDatetime(deed.until)
            hold = pb.HoldPointsRequest(**common, amount=amount, expire_time=until)
            answer = await self._deliver(self.stub.HoldPoints, hold)
            self._placed[deed.name] = answer.hold_id
            self.counts.holds += 1
        return int(answer.balance.available)

    async def _close(self, member_id: str, deed: deeds.Close) -> None:
        if (hold_id := self._placed.get(deed.hold)) is None:
            return
        common = {"member_id": member_id, "request_id": deed.name, "hold_id": hold_id}
        if deed.capture is None:
            await self._deliver(self.stub.ReleaseHold, pb.ReleaseHoldRequest(**common))
            self.counts.releases += 1
        else:
            capture = pb.CaptureHoldRequest(**common, amount=deed.capture)
            self._count_redeemed(member_id, await self._deliver(self.stub.CaptureHold, capture))
            self.counts.captures += 1

    def _count_redeemed(self, member_id: str, answer: pb.Transaction) -> None:
        spent = sum(m.amount for m in answer.transfers if m.credit == pb.ACCOUNT_ISSUER_REDEEMED)
        self.redeemed[member_id] = self.redeemed.get(member_id, 0) + spent

    async def _deliver(self, method: Callable[..., Any], request: Any) -> Any:
        """Has something done in this replay's way. Of orders and refunds there are events too."""
        happened = isinstance(request, pb.EarnPointsRequest | pb.RefundOrderRequest)
        if self.way is Delivery.TWICE:
            again = type(request)()
            again.CopyFrom(request)
            if happened:  # known by its own id, whoever tells it again
                again.request_id = f"{request.request_id}-again"
            first, second = await asyncio.gather(self.persist(method, request), self.persist(method, again))
            if first != second:
                raise ReplayError(f"{request.request_id} was answered in two ways:\n{first}\n{second}")
            return first
        if self.events is not None and happened:
            publishing = self.events.publish(event_of(request), request.request_id)
            answer, _ = await asyncio.gather(self.persist(method, request), publishing)
            self.counts.events_first += answer.request_id.startswith("~")
            return answer
        return await self.persist(method, request)

    async def balances(self, members: list[str]) -> dict[str, pb.Balance]:
        """Balances of those who are known, when every event is in the books."""
        if self.events is not None:
            await self.events.consumed()
        found: dict[str, pb.Balance] = {}
        for first in range(0, len(members), BALANCES):
            request = pb.BatchGetBalancesRequest(member_ids=members[first : first + BALANCES])
            answer = await self.persist(self.stub.BatchGetBalances, request)
            found |= {balance.member_id: balance for balance in answer.balances}
        return found

    async def persist(self, method: Callable[..., Any], request: Any) -> Any:
        """Calls until there is an answer: the same request, so that it happens once."""
        async for attempt in stamina.retry_context(
            on=_worth_a_retry, attempts=None, timeout=GIVE_UP, wait_initial=0.05, wait_max=2.0
        ):
            with attempt:
                if attempt.num > 1:
                    self.counts.retries += 1
                return await method(request, timeout=CALL_TIMEOUT)
        raise AssertionError("the retries end with an answer or an error")


def _worth_a_retry(error: Exception) -> bool:
    return isinstance(error, grpc.aio.AioRpcError) and error.code() in _TRY_AGAIN


def earn_request(member_id: str, order: Order) -> pb.EarnPointsRequest:
    """The one request that earns an order, however often it is sent."""
    return pb.EarnPointsRequest(member_id=member_id, request_id=f"earn-{order.order_id}", order=order)


def refund_request(member_id: str, deed: deeds.Refund, at: datetime) -> pb.RefundOrderRequest:
    """The one request that refunds as planned."""
    refund = Refund(order_id=deed.order_id, refund_id=deed.name)
    refund.refund_time.FromDatetime(at)
    if deed.everything:
        refund.all = True
    elif deed.lines:
        lines = [RefundedLine(line_id=line, amount_minor=amount) for line, amount in deed.lines.items()]
        refund.lines.CopyFrom(RefundedLines(lines=lines))
    else:
        refund.amount_minor = deed.amount
    return pb.RefundOrderRequest(member_id=member_id, request_id=deed.name, refund=refund)


def event_of(request: pb.EarnPointsRequest | pb.RefundOrderRequest) -> OrderPaid | OrderRefunded:
    """The brand's event about what a request tells."""
    if isinstance(request, pb.EarnPointsRequest):
        return OrderPaid(member_id=request.member_id, order=request.order)
    return OrderRefunded(member_id=request.member_id, refund=request.refund)


class Publisher:
    """Publishes the brand's events, and waits until a service is through with them."""

    def __init__(self, client: Client, service: str = CONSUMER) -> None:
        self._jetstream = client.jetstream()
        self._service = service
        self._last: dict[str, int] = {}

    async def publish(self, message: Message, event_id: str) -> None:
        """Publishes an event until the stream has it. Raises NatsError."""
        headers = {"ce-source": SOURCE, "ce-id": event_id}
        async for attempt in stamina.retry_context(  # the house may have no stream yet
            on=NatsError, attempts=None, timeout=GIVE_UP, wait_initial=0.05, wait_max=2.0
        ):
            with attempt:
                stored = await self._jetstream.publish(
                    message.DESCRIPTOR.full_name, message.SerializeToString(), headers=headers
                )
                self._last[stored.stream] = max(stored.seq, self._last.get(stored.stream, 0))

    async def consumed(self) -> None:
        """Waits until the service has acknowledged what was published. Raises ReplayError."""
        deadline = time.monotonic() + GIVE_UP
        for stream, last in self._last.items():
            while not await self._caught_up(stream, last):
                if time.monotonic() > deadline:
                    raise ReplayError(f"after {GIVE_UP:g} s {self._service} has not read all of {stream}")
                await asyncio.sleep(POLL)

    async def _caught_up(self, stream: str, last: int) -> bool:
        try:
            info = await self._jetstream.consumer_info(stream, self._service)
        except NotFoundError:
            return False
        return bool(info.ack_floor.stream_seq >= last)


@asynccontextmanager
async def publisher(house: Mapping[str, Any], way: Delivery) -> AsyncIterator[Publisher | None]:
    """Whoever publishes, where events are a part of the way."""
    if way is not Delivery.BOTH:
        yield None
        return
    client = await nats.connect(house["nats"])
    try:
        yield Publisher(client)
    finally:
        await client.close()
