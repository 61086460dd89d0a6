"""`loyalty replay`: real orders in the order of their days, and the proof that they came out right.

Many members are in flight at once, each member's deeds one after the other: it orders, redeems, holds points,
captures or releases them or lets them lapse, and has orders refunded. All of it is made from the orders, so a
replay that was interrupted, or is run again, changes nothing that is there already.

With `--verify` every balance is compared with the oracle's at each month's end and on the last day:
available, held, owed, earned, spent, growth, tier, and what expired, which is what was earned or is owed less
what is there or was spent. The first end with a difference is the last.

The proof over the whole year, on servers of its own, in each of the ways of delivery:

    loyalty replay --prove --delivery once        (then twice, both, shuffled)
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import grpc
import polars as pl
import typer
import yaml
from loyalty.orders.v1.orders_pb2 import Order
from loyalty.points.v1 import points_service_pb2 as pb
from loyalty.points.v1.points_service_pb2_grpc import PointsServiceStub
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from services.chassis.clock import TestClock
from services.cli import baskets, clockwork, deeds, proof
from services.cli.delivery import Counts, Delivery, ReplayError, Sender, publisher
from services.cli.oracle import Oracle
from services.cli.place import HouseOption, JsonOption, describe

SETTLE_TIMEOUT = 60.0  # seconds that services get to do what fell due
SHOWN = 20  # differences printed

PROGRAMME = Path("deploy/programmes/burger-king.yaml")

_ZONE = ZoneInfo(baskets.TIME_ZONE)


@dataclass(frozen=True)
class MonthEnd:
    """What everybody owned together in the evening of a month's last day, as the service says."""

    day: str
    members: int
    orders: int
    """Since the first day, as all sums."""
    available: int
    held: int
    owed: int
    earned: int
    redeemed: int
    expired: int
    tiers: dict[str, int]
    """How many members hold each tier."""
    differences: int
    seconds: float


@dataclass
class Outcome(Counts):
    """What a replay did."""

    new_transactions: int = 0
    seconds: float = 0.0
    months: list[MonthEnd] = field(default_factory=list)
    """The ends that were compared with the oracle."""
    differences: list[str] | None = None
    """What the oracle says otherwise, None if it was not asked."""


def replay(
    house: Mapping[str, Any],
    frame: pl.DataFrame,
    programme: Mapping[str, Any] | None = None,
    tick: Callable[[int], None] = lambda _orders: None,
    *,
    delivery: Delivery = Delivery.ONCE,
    say: Callable[[str], None] = lambda _line: None,
) -> Outcome:
    """Replays baskets into a house with a test clock; with a programme, asks the oracle at each month's end.

    `house` is what `loyalty up` prints, `tick` hears of orders done, `say` gets a line for each month. After
    one with differences there is no next. Raises ReplayError.
    """
    if not house.get("test_clock"):
        raise ReplayError("the house has no test clock; start it with `loyalty up --test-clock 2016-12-31`")
    return asyncio.run(_replay(house, frame, programme, tick, delivery=delivery, say=say))


async def _replay(
    house: Mapping[str, Any],
    frame: pl.DataFrame,
    programme: Mapping[str, Any] | None,
    tick: Callable[[int], None],
    *,
    delivery: Delivery,
    say: Callable[[str], None],
) -> Outcome:
    started = time.monotonic()
    members = frame["member_id"].unique().sort().to_list()
    plan = deeds.plan(frame)
    clock = TestClock(Path(house["test_clock"]))
    oracle = None if programme is None else Oracle(frame, programme, plan)
    if oracle is not None and clock.now() > deeds.evening(_local_days(frame)[1]):
        raise ReplayError(f"the clock stands at {clock.now()}, after the last order: nothing to compare with")
    outcome = Outcome(differences=None if oracle is None else [])
    async with (
        grpc.aio.insecure_channel(house["points"]["grpc"]) as channel,
        publisher(house, delivery) as events,
    ):
        sender = Sender(PointsServiceStub(channel), plan, delivery, events, tick, outcome)
        before = await sender.balances(members)
        for day, orders, ends in _days(frame):
            await _move(clock, day, house["services"])
            await sender.send(day, orders)
            if not ends:
                continue
            line = f"{day}: {outcome.orders:,} orders, {time.monotonic() - started:.0f} s"
            # What was once owned at an end that lies behind the clock, nobody can tell any more.
            if oracle is not None and clock.now() == deeds.evening(day):
                end = await _compare(oracle, sender, members, day, outcome=outcome, started=started)
                line += f", {end.members:,} members, {end.expired:,} points expired"
                line += f", {end.differences:,} differences"
            say(line)
            if outcome.differences:
                break
        outcome.new_transactions = _posted(await sender.balances(members)) - _posted(before)
    outcome.seconds = time.monotonic() - started
    return outcome


def _posted(balances: Mapping[str, pb.Balance]) -> int:
    return sum(balance.seq for balance in balances.values())


def _days(frame: pl.DataFrame) -> Iterator[tuple[date, list[tuple[str, Order]], bool]]:
    """Every local day from the first order's to the last's, its orders, and whether a month ends or all."""

    def local_day(order: tuple[str, Order]) -> date:
        return order[1].paid_time.ToDatetime(tzinfo=UTC).astimezone(_ZONE).date()

    day, last = _local_days(frame)
    for next_day, orders in groupby(baskets.orders(frame), key=local_day):
        while day < next_day:
            yield day, [], _month_ends(day)
            day += timedelta(days=1)
        yield day, list(orders), day == last or _month_ends(day)
        day += timedelta(days=1)


def _local_days(frame: pl.DataFrame) -> tuple[date, date]:
    """The first and the last order's."""
    days = frame["paid_time"].dt.convert_time_zone(baskets.TIME_ZONE).dt.date()
    return days[0], days[-1]


def _month_ends(day: date) -> bool:
    return (day + timedelta(days=1)).day == 1


async def _move(clock: TestClock, day: date, services: Sequence[str]) -> None:
    """Sets the clock to the last second of a local day, unless it is later already."""
    to = max(deeds.evening(day), clock.now())
    await asyncio.to_thread(clockwork.move, clock, to, SETTLE_TIMEOUT, services)


async def _compare(
    oracle: Oracle, sender: Sender, members: list[str], day: date, *, outcome: Outcome, started: float
) -> MonthEnd:
    """Compares everybody's balances with the oracle's in the evening of a day, and notes both."""
    balances = await sender.balances(members)
    shuffled = sender.way is Delivery.SHUFFLED
    order_of_posting = sender.places.__getitem__ if shuffled else lambda _order_id: 0
    expected = await asyncio.to_thread(oracle.until, day, order_of_posting)
    owned = {member_id: _owned(b, sender.redeemed.get(member_id, 0)) for member_id, b in balances.items()}
    found = [f"{day} {line}" for line in differences(owned, expected)]
    outcome.differences = (outcome.differences or []) + found
    sums = {name: sum(each[name] for each in owned.values()) for name in _SUMS}
    tiers = [each["tier"] for each in owned.values()]
    end = MonthEnd(
        day=day.isoformat(),
        members=len(owned),
        orders=outcome.orders,
        earned=sums.pop("lifetime_earned"),
        **sums,
        tiers={tier: tiers.count(tier) for tier in sorted(set(tiers))},
        differences=len(found),
        seconds=time.monotonic() - started,
    )
    outcome.months.append(end)
    return end


_SUMS = ("available", "held", "owed", "lifetime_earned", "redeemed", "expired")


def _owned(balance: pb.Balance, redeemed: int) -> dict[str, Any]:
    """A balance as the oracle has it. What was redeemed is known from the answers; what expired follows."""
    there = balance.available + balance.pending + balance.held
    return {
        "available": balance.available,
        "held": balance.held,
        "owed": balance.owed,
        "lifetime_earned": balance.lifetime_earned,
        "redeemed": redeemed,
        "expired": balance.lifetime_earned + balance.owed - there - redeemed,
        "growth": balance.growth,
        "tier": balance.tier,
    }


def differences(owned: Mapping[str, Mapping[str, Any]], expected: pl.DataFrame) -> list[str]:
    """Where what members own is not what the oracle expects, to the point."""
    found = []
    for row in expected.iter_rows(named=True):
        theirs = owned.get(row["member_id"]) or _owned(pb.Balance(), 0)
        found += [
            f"{row['member_id']}: {name} is {value}, the oracle says {row[name]}"
            for name, value in theirs.items()
            if value != row[name]
        ]
    unknown = sorted(owned.keys() - set(expected["member_id"]))
    return [*found, *(f"{member_id}: is not known to the oracle" for member_id in unknown)]


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
    delivery: Annotated[
        Delivery, typer.Option(help="By call in order, every call twice, by call and event, or in no order.")
    ] = Delivery.ONCE,
    verify: Annotated[
        bool, typer.Option(help="Recompute every balance apart from the service, and compare.")
    ] = False,
    programme: Annotated[
        Path, typer.Option(help="The programme that is in force, for --verify.")
    ] = PROGRAMME,
    prove: Annotated[
        bool,
        typer.Option(
            help="On servers of its own, under the programme with points and tiers that last three months: "
            "verify, send everything once more, and audit the books."
        ),
    ] = False,
    house: HouseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send real orders of 2017 to a house with a test clock, day by day; again, and nothing changes.

    Members redeem, hold, capture, release and have refunded what they bought, as hashes of the orders' ids
    decide. `loyalty replay --prove --delivery both` proves the whole year by itself.
    """
    if orders != "completejourney":
        raise typer.BadParameter(f"no orders named {orders}", param_hint="--orders")
    frame = baskets.load(start.date() if start else None, until.date() if until else None)
    rules = yaml.safe_load(programme.read_text())["points"]
    console = Console(stderr=True)
    if prove:
        found = _prove(console, frame, proof.short_lived(rules), delivery)
        _print({name: asdict(part) for name, part in found.items()}, as_json)
        wrong = bool(
            found["first"].differences or found["second"].new_transactions or found["audit"].findings
        )
    else:
        outcome = _shown(console, describe(house), frame, rules if verify else None, delivery)
        _print(asdict(outcome), as_json)
        wrong = bool(outcome.differences)
    if wrong:
        raise typer.Exit(1)


def _prove(
    console: Console, frame: pl.DataFrame, rules: Mapping[str, Any], delivery: Delivery
) -> dict[str, Any]:
    with proof.own_house(rules) as house:
        first = _shown(console, house.describe(), frame, rules, delivery)
        second = _shown(console, house.describe(), frame, None, delivery)
        return {"first": first, "second": second, "audit": proof.audited(house)}


def _shown(
    console: Console,
    house: Mapping[str, Any],
    frame: pl.DataFrame,
    rules: Mapping[str, Any] | None,
    delivery: Delivery,
) -> Outcome:
    """Replays with a bar, and a line for every month, however narrow the terminal."""

    def say(line: str) -> None:
        console.print(line, soft_wrap=True, highlight=False)

    with progress_bar(console, "orders", frame["order_id"].n_unique()) as tick:
        return replay(house, frame, rules, tick, delivery=delivery, say=say)


def _print(found: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False))
        return
    for name, value in found.items():
        if isinstance(value, dict):
            typer.echo(f"{name}")
            _print(value, as_json)
        else:
            typer.echo(f"{name.replace('_', ' ')}: {_readable(value)}")


def _readable(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.1f}"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return len(value)
    if isinstance(value, list):
        return os.linesep.join([str(len(value)), *map(str, value[:SHOWN])])
    return "not asked" if value is None else value
