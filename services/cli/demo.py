"""`loyalty demo`: one real month through the whole house, and the proof that it came out right."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any

import grpc
import nats
import polars as pl
import stamina.instrumentation
import typer
import yaml
from google.protobuf.json_format import ParseDict
from loyalty.points.v1 import points_events_pb2
from loyalty.points.v1 import points_service_pb2 as pb
from loyalty.points.v1.points_events_pb2 import PointsPosted
from loyalty.points.v1.points_service_pb2_grpc import PointsServiceStub
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from rich.console import Console
from rich.table import Table

from services.chassis.audit import Report
from services.cli import baskets, replay
from services.cli.house import House
from services.cli.story import MEMBER, Scene, Teller
from services.points.audit import CHECKS, audit

EVE = datetime(2016, 12, 31, 4, 0, tzinfo=UTC)  # where the clock stands when the programme is put
MONTH = (date(2017, 1, 1), date(2017, 1, 31))
SHOWN = 12  # events printed
ARRIVAL = 60.0  # seconds that the last event gets to arrive
CALL_TIMEOUT = 10.0  # seconds


def command(
    programme: Annotated[Path, typer.Option(help="The programme of the month.")] = replay.PROGRAMME,
) -> None:
    """Run one real month on servers of its own, verify every balance, and print what came out."""
    stamina.instrumentation.set_on_retry_hooks([])
    console = Console()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="loyalty-demo-") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL does not run as root: its user must get in
        house = House(Path(folder), services=("points",))
        try:
            with _step(console, "Starting PostgreSQL, NATS and the points service"):
                house.start(EVE)
            differences = _story(console, house, programme, started)
        finally:
            house.close()
    if differences:
        raise typer.Exit(1)


def _story(console: Console, house: House, programme: Path, started: float) -> int:
    rules = yaml.safe_load(programme.read_text())["points"]
    with _step(console, f"Putting the programme of {programme.name}"):
        _put(house, rules)
    frame = baskets.load(*MONTH)
    listener = Listener(house.nats.url)
    with _step(console, f"Replaying {frame['order_id'].n_unique():,} real orders of {MONTH[0]:%B %Y}"):
        first = _replay(console, house, frame, rules)
    with _step(console, "Replaying them once more, as a caller does that lost its answers"):
        second = _replay(console, house, frame, None)
    teller = Teller(house)
    with _step(console, "One more member checks out with points, and returns the fries"):
        teller.checkout()
    month_end = _liability(house)
    with _step(console, "A year passes: everybody is told what expires, and it does"):
        teller.a_year_later()
    with _step(console, "Auditing the books, and the stream against them"):
        report = asyncio.run(audit(house.database_url("points"), stream_url=house.nats.url))
    published = sum(examined for meaning, examined, _ in report.lines if meaning == CHECKS["outbox"])
    received, sample = listener.received(published)
    console.print("\nWhat another team's subscriber sees, with nothing of ours but the protos:")
    for event in sample:
        console.print(f"  {_line(event)}")
    console.print(_scenes(teller.scenes))
    wrong = [*(first.differences or []), *(line for _, _, found in report.lines for line in found)]
    if second.new_transactions:
        wrong.append(f"the second replay made {second.new_transactions} new transactions")
    if received != published:
        wrong.append(f"{received} events arrived of {published}")
    wrong += [f"{s.what}: {s.available} and {s.held}, not {s.expected}" for s in teller.scenes if not s.right]
    figures = _figures(first, second, report, month_end) | {
        "events published": published,
        "events received": received,
        "seconds in all": round(time.monotonic() - started),
    }
    console.print(_table(figures))
    for line in wrong[:20]:
        console.print(f"[red]{line}")
    return len(wrong)


def _put(house: House, rules: dict[str, object]) -> None:
    with grpc.insecure_channel(house.describe()["points"]["grpc"]) as channel:
        request = pb.PutProgrammeRequest(request_id="demo", programme=ParseDict(rules, pb.Programme()))
        PointsServiceStub(channel).PutProgramme(request, timeout=CALL_TIMEOUT)


def _replay(
    console: Console, house: House, frame: pl.DataFrame, rules: dict[str, object] | None
) -> replay.Outcome:
    with replay.progress_bar(console, "orders", frame["order_id"].n_unique()) as tick:
        return replay.replay(house.describe(), frame, rules, tick)


@contextmanager
def _step(console: Console, what: str) -> Iterator[None]:
    console.print(f"{what} …", end=" " if not console.is_terminal else "\n")
    started = time.monotonic()
    yield
    console.print(f"{time.monotonic() - started:.1f} s")


def _liability(house: House) -> int:
    """What members could spend now."""
    return asyncio.run(audit(house.database_url("points"))).totals["liability"]


def _scenes(scenes: list[Scene]) -> Table:
    table = Table(title=f"\nWhat {MEMBER} owned after")
    table.add_column("")
    for name in ("available", "held"):
        table.add_column(name, justify="right")
    for scene in scenes:
        table.add_row(scene.what, str(scene.available), str(scene.held))
    return table


def _figures(first: replay.Outcome, second: replay.Outcome, report: Report, month_end: int) -> dict[str, int]:
    totals = report.totals
    return {
        "members": totals["members"],
        "orders": first.orders,
        "redemptions": first.redemptions,
        "redemptions and holds with too few points": first.too_few,
        "holds": first.holds,
        "refunds": first.refunds,
        "points earned": totals["earned"],
        "points redeemed": totals["redeemed"],
        "liability at the month's end (points)": month_end,
        "points expired a year later": totals["expired"],
        "transactions": totals["transactions"],
        "new transactions in the second replay": second.new_transactions,
        "differences to the oracle": len(first.differences or []),
        "audit findings": sum(len(found) for _, _, found in report.lines),
        "orders a second": round(first.orders / first.seconds),
    }


def _table(figures: dict[str, int]) -> Table:
    table = Table(title="One month", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, value in figures.items():
        table.add_row(name, f"{value:,}")
    return table


class Listener:
    """A subscriber of another team: counts what is new to it by member and version."""

    def __init__(self, url: str) -> None:
        self._url = url

    def received(self, expected: int) -> tuple[int, list[Any]]:
        """Reads the stream from its start until as many events as expected came, or the time is up."""
        return asyncio.run(self._read(expected))

    async def _read(self, expected: int) -> tuple[int, list[Any]]:
        seen: dict[tuple[str, int, int], Any] = {}
        client = await nats.connect(self._url)
        try:
            subscription = await client.jetstream().subscribe(
                "loyalty.points.v1.>", stream="POINTS", ordered_consumer=True
            )
            with suppress(TimeoutError):
                async with asyncio.timeout(ARRIVAL):
                    while len(seen) < expected:
                        message = await _next(subscription)
                        event = getattr(points_events_pb2, message.subject.rsplit(".", 1)[-1])()
                        event.ParseFromString(message.data)
                        seen[event.member_id, event.epoch, event.version] = event
            await subscription.unsubscribe()
        finally:
            await client.close()
        return len(seen), [event for event in seen.values() if event.member_id == MEMBER][:SHOWN]


def _line(event: Any) -> str:
    """An event on one line."""
    if not isinstance(event, PointsPosted):
        return f"{type(event).__name__:14} {event.member_id:8}"
    tx = event.transaction
    kind = pb.TransactionKind.Name(tx.kind).removeprefix("TRANSACTION_KIND_")
    after = f"available after {tx.balance.available:<5} hash {tx.hash.hex()[:12]}…"
    return f"{kind:14} {event.member_id:8} seq {tx.seq:<3} {after}"


async def _next(subscription: JetStreamContext.PushSubscription) -> Msg:
    return await subscription.next_msg(timeout=ARRIVAL)
