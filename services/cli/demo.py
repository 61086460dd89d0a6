"""`loyalty demo`: one real month through the whole house, and the proof that it came out right."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated

import grpc
import nats
import polars as pl
import stamina.instrumentation
import typer
import yaml
from google.protobuf.json_format import ParseDict
from loyalty.points.v1 import points_service_pb2 as pb
from loyalty.points.v1.points_events_pb2 import PointsPosted
from loyalty.points.v1.points_service_pb2_grpc import PointsServiceStub
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from rich.console import Console
from rich.table import Table

from services.cli import baskets, replay
from services.cli.house import House
from services.points.audit import CHECKS, Report, audit

EVE = datetime(2016, 12, 31, 4, 0, tzinfo=UTC)  # where the clock stands when the programme is put
MONTH = (date(2017, 1, 1), date(2017, 1, 31))
SHOWN = 3  # events printed
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
        house = House(Path(folder))
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
    with _step(console, "Auditing the books, and the stream against them"):
        report = asyncio.run(audit(house.database_url("points"), stream_url=house.nats.url))
    received, sample = listener.received(report.totals["transactions"])
    console.print("\nWhat another team's subscriber sees, with nothing of ours but the protos:")
    for event in sample:
        tx = event.transaction
        kind = pb.TransactionKind.Name(tx.kind).removeprefix("TRANSACTION_KIND_")
        console.print(
            f"  {kind:6} "
            f"{event.member_id:8} seq {tx.seq:<3} "
            f"available after {tx.balance.available:<5} hash {tx.hash.hex()[:12]}…"
        )
    wrong = [*(first.differences or []), *(line for _, _, found in report.lines for line in found)]
    if second.new_transactions:
        wrong.append(f"the second replay made {second.new_transactions} new transactions")
    if received != report.totals["transactions"]:
        wrong.append(f"{received} events arrived for {report.totals['transactions']} transactions")
    console.print(_table(first, second, report, received, time.monotonic() - started))
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


def _table(
    first: replay.Outcome, second: replay.Outcome, report: Report, received: int, seconds: float
) -> Table:
    totals = report.totals
    rows = {meaning: examined for meaning, examined, _ in report.lines}
    table = Table(title="One month", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    figures = {
        "members": totals["members"],
        "orders": first.orders,
        "redemptions": first.redemptions,
        "redemptions with too few points": first.too_few,
        "points earned": totals["earned"],
        "points redeemed": totals["redeemed"],
        "points expired": totals["expired"],
        "liability (points)": totals["liability"],
        "transactions": totals["transactions"],
        "events published": rows[CHECKS["outbox"]],
        "events received": received,
        "new transactions in the second replay": second.new_transactions,
        "differences to the oracle": len(first.differences or []),
        "audit findings": sum(len(found) for _, _, found in report.lines),
        "orders a second": round(first.orders / first.seconds),
        "seconds in all": round(seconds),
    }
    for name, value in figures.items():
        table.add_row(name, f"{value:,}")
    return table


class Listener:
    """A subscriber of another team: counts what is new to it by member and version."""

    def __init__(self, url: str) -> None:
        self._url = url

    def received(self, expected: int) -> tuple[int, list[PointsPosted]]:
        """Reads the stream from its start until as many events as expected came, or the time is up."""
        return asyncio.run(self._read(expected))

    async def _read(self, expected: int) -> tuple[int, list[PointsPosted]]:
        seen: dict[tuple[str, int, int], PointsPosted] = {}
        client = await nats.connect(self._url)
        try:
            subscription = await client.jetstream().subscribe(
                PointsPosted.DESCRIPTOR.full_name, stream="POINTS", ordered_consumer=True
            )
            with suppress(TimeoutError):
                async with asyncio.timeout(ARRIVAL):
                    while len(seen) < expected:
                        event = PointsPosted.FromString((await _next(subscription)).data)
                        seen[event.member_id, event.epoch, event.version] = event
            await subscription.unsubscribe()
        finally:
            await client.close()
        return len(seen), list(seen.values())[-SHOWN:]


async def _next(subscription: JetStreamContext.PushSubscription) -> Msg:
    return await subscription.next_msg(timeout=ARRIVAL)
