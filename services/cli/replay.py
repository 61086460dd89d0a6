"""`loyalty replay`: real orders in the order of their days, and the proof that they came out right.

Many members are in flight at once, each member's orders one after the other. Request ids are made from the
orders, so a replay that was interrupted, or is run again, changes nothing that is there already.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from zoneinfo import ZoneInfo

import grpc
import polars as pl
import stamina
import typer
import yaml
from loyalty.orders.v1.orders_pb2 import Order
from loyalty.points.v1 import points_service_pb2 as pb
from loyalty.points.v1.points_service_pb2_grpc import PointsServiceStub
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from services.chassis.clock import TestClock
from services.cli import baskets, clockwork, oracle
from services.cli.place import Failure, HouseOption, JsonOption, describe

if TYPE_CHECKING:  # the generated stub has this name only for type checkers
    from loyalty.points.v1.points_service_pb2_grpc import PointsServiceAsyncStub

IN_FLIGHT = 256  # members with a call under way
CALL_TIMEOUT = 10.0  # seconds of one attempt
GIVE_UP = 180.0  # seconds until a call that keeps failing ends the replay
SETTLE_TIMEOUT = 60.0  # seconds that services get to do what fell due
BALANCES = 1_000  # members a call

PROGRAMME = Path("deploy/programmes/burger-king.yaml")

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


@dataclass
class Outcome:
    """What a replay did."""

    orders: int = 0
    redemptions: int = 0
    too_few: int = 0
    """Redemptions that were due and not sent: the member had too few points."""
    retries: int = 0
    new_transactions: int = 0
    seconds: float = 0.0
    differences: list[str] | None = field(default=None)
    """What the oracle says otherwise, None if it was not asked."""


def replay(
    house: Mapping[str, Any],
    frame: pl.DataFrame,
    programme: Mapping[str, Any] | None = None,
    tick: Callable[[int], None] = lambda _orders: None,
) -> Outcome:
    """Replays baskets into a house with a test clock; with a programme, asks the oracle afterwards.

    `house` is what `loyalty up` prints, `tick` hears of orders done. Raises ReplayError.
    """
    if not house.get("test_clock"):
        raise ReplayError("the house has no test clock; start it with `loyalty up --test-clock 2016-12-31`")
    return asyncio.run(_replay(house, frame, programme, tick))


async def _replay(
    house: Mapping[str, Any],
    frame: pl.DataFrame,
    programme: Mapping[str, Any] | None,
    tick: Callable[[int], None],
) -> Outcome:
    started = time.monotonic()
    members = frame["member_id"].unique().sort().to_list()
    async with grpc.aio.insecure_channel(house["points"]["grpc"]) as channel:
        sender = _Sender(PointsServiceStub(channel), tick)
        before = await sender.balances(members)
        clock = TestClock(Path(house["test_clock"]))
        zone = ZoneInfo(baskets.TIME_ZONE)
        for day, orders in groupby(baskets.orders(frame), key=lambda order: _local_day(order[1], zone)):
            await _move(clock, day, zone)
            await sender.send(orders)
        after = await sender.balances(members)
    outcome = sender.outcome
    outcome.new_transactions = _posted(after) - _posted(before)
    if programme is not None:
        outcome.differences = differences(after, oracle.expected(frame, dict(programme)))
    outcome.seconds = time.monotonic() - started
    return outcome


def _posted(balances: Mapping[str, pb.Balance]) -> int:
    return sum(balance.seq for balance in balances.values())


def _local_day(order: Order, zone: ZoneInfo) -> date:
    return order.paid_time.ToDatetime(tzinfo=UTC).astimezone(zone).date()


async def _move(clock: TestClock, day: date, zone: ZoneInfo) -> None:
    """Sets the clock to the last second of a local day, unless it is later already."""
    following = day + timedelta(days=1)
    evening = datetime(following.year, following.month, following.day, tzinfo=zone) - timedelta(seconds=1)
    to = max(evening.astimezone(UTC), clock.now())
    await asyncio.to_thread(clockwork.move, clock, to, SETTLE_TIMEOUT)


class _Sender:
    """Sends a day's orders, and what their members redeem."""

    def __init__(self, stub: PointsServiceAsyncStub, tick: Callable[[int], None]) -> None:
        self._stub = stub
        self._tick = tick
        self._free = asyncio.Semaphore(IN_FLIGHT)
        self._ordinals: Counter[str] = Counter()
        self.outcome = Outcome()

    async def send(self, orders: Iterable[tuple[str, Order]]) -> None:
        """Sends orders, each member's in turn."""
        by_member: dict[str, list[Order]] = {}
        for member_id, order in orders:
            by_member.setdefault(member_id, []).append(order)
        async with asyncio.TaskGroup() as group:
            for member_id, theirs in by_member.items():
                group.create_task(self._send_member(member_id, theirs))

    async def _send_member(self, member_id: str, orders: list[Order]) -> None:
        async with self._free:
            for order in orders:
                earned = await self._persist(self._stub.EarnPoints, earn_request(member_id, order))
                self.outcome.orders += 1
                self._ordinals[member_id] += 1
                redemption = baskets.redemption_due(member_id, order, self._ordinals[member_id])
                if redemption is not None:
                    # Decided by the first answer, which a second replay gets again: a refusal is not kept,
                    # so asking blindly could be refused once and granted the next time.
                    if earned.balance.available >= redemption.amount:
                        await self._persist(self._stub.RedeemPoints, redemption)
                        self.outcome.redemptions += 1
                    else:
                        self.outcome.too_few += 1
                self._tick(1)

    async def balances(self, members: list[str]) -> dict[str, pb.Balance]:
        """Balances of those who are known."""
        found: dict[str, pb.Balance] = {}
        for first in range(0, len(members), BALANCES):
            request = pb.BatchGetBalancesRequest(member_ids=members[first : first + BALANCES])
            answer = await self._persist(self._stub.BatchGetBalances, request)
            found |= {balance.member_id: balance for balance in answer.balances}
        return found

    async def _persist(self, method: Callable[..., Any], request: Any) -> Any:
        """Calls until there is an answer: the same request, so that it happens once."""
        async for attempt in stamina.retry_context(
            on=_worth_a_retry, attempts=None, timeout=GIVE_UP, wait_initial=0.05, wait_max=2.0
        ):
            with attempt:
                if attempt.num > 1:
                    self.outcome.retries += 1
                return await method(request, timeout=CALL_TIMEOUT)
        raise AssertionError("the retries end with an answer or an error")


def _worth_a_retry(error: Exception) -> bool:
    return isinstance(error, grpc.aio.AioRpcError) and error.code() in _TRY_AGAIN


def earn_request(member_id: str, order: Order) -> pb.EarnPointsRequest:
    """The one request that earns an order, however often it is sent."""
    return pb.EarnPointsRequest(member_id=member_id, request_id=f"earn-{order.order_id}", order=order)


def differences(balances: Mapping[str, pb.Balance], expected: pl.DataFrame) -> list[str]:
    """Where the service's balances are not the oracle's, to the point."""
    found: list[str] = []
    for row in expected.iter_rows(named=True):
        balance = balances.get(row["member_id"], pb.Balance())
        actual = {
            "available": balance.available,
            "lifetime_earned": balance.lifetime_earned,
            "growth": balance.growth,
            "redeemed": balance.lifetime_earned - balance.available,
            "tier": balance.tier,
        }
        found.extend(
            f"{row['member_id']}: {name} is {value}, the oracle says {row[name]}"
            for name, value in actual.items()
            if value != row[name]
        )
    return found


@contextmanager
def progress_bar(console: Console, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal; the block gets a function that moves it on."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.advance(task, done)


def command(  # noqa: PLR0917 - each is an option of the command line
    orders: Annotated[
        str, typer.Option(help="Which orders; completejourney is the one there is.")
    ] = "completejourney",
    start: Annotated[
        datetime | None, typer.Option("--from", formats=["%Y-%m-%d"], help="First local day.")
    ] = None,
    until: Annotated[
        datetime | None, typer.Option("--to", formats=["%Y-%m-%d"], help="Last local day.")
    ] = None,
    verify: Annotated[
        bool, typer.Option(help="Recompute every balance apart from the service, and compare.")
    ] = False,
    programme: Annotated[
        Path, typer.Option(help="The programme that is in force, for --verify.")
    ] = PROGRAMME,
    house: HouseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send real orders of 2017 to a house with a test clock, day by day; again, and nothing changes."""
    if orders != "completejourney":
        raise typer.BadParameter(f"no orders named {orders}", param_hint="--orders")
    found = describe(house)
    frame = baskets.load(start.date() if start else None, until.date() if until else None)
    rules = yaml.safe_load(programme.read_text())["points"] if verify else None
    console = Console(stderr=True)
    with progress_bar(console, "orders", frame["order_id"].n_unique()) as tick:
        outcome = replay(found, frame, rules, tick)
    if as_json:
        typer.echo(json.dumps(asdict(outcome)))
    else:
        for name, value in asdict(outcome).items():
            typer.echo(f"{name.replace('_', ' ')}: {_readable(value)}")
    if outcome.differences:
        raise typer.Exit(1)


def _readable(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.1f}"
    if isinstance(value, list):
        return os.linesep.join([str(len(value)), *map(str, value[:20])])
    return "not asked" if value is None else value
