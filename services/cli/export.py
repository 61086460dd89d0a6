"""`loyalty export`: balances and transactions as CSV, read by call."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from loyalty.points.v1 import points_service_pb2 as pb
from loyalty.points.v1.points_events_pb2 import PointsPosted
from rich.progress import Progress

from services.cli.events import read
from services.cli.place import HouseOption, Points, err, points, run, stream

PAGE = 1000  # members or transactions a call
BALANCE = (
    "member_id",
    "available",
    "pending",
    "held",
    "owed",
    "lifetime_earned",
    "growth",
    "tier",
    "version",
)
IDS = ("request_id", "order_id", "activity_id", "reference_id", "reverses_transaction_id")
AFTER = ("available", "pending", "held", "owed", "growth", "lifetime_earned")
TRANSACTION = (
    *("member_id", "seq", "transaction_id", "kind", "occur_time", "create_time", *IDS),
    *("points_change", "growth_change", *(f"{name}_after" for name in AFTER), "programme_version"),
)

app = typer.Typer(help="Write CSV files.", no_args_is_help=True)

OutOption = Annotated[Path, typer.Option("--out", dir_okay=False, help="The file to write.")]
MemberOption = Annotated[
    list[str] | None,
    typer.Option("--member", help="May be repeated. [default: every member with an event in the stream]"),
]


@app.command()
def balances(out: OutOption, *, member: MemberOption = None, house: HouseOption = None) -> None:
    """Write one line per member: what they own now."""
    members = _members(house, member)
    with points(house) as service:
        _write(out, BALANCE, _balances(service, members), len(members))


@app.command()
def transactions(out: OutOption, *, member: MemberOption = None, house: HouseOption = None) -> None:
    """Write one line per transaction, newest first for each member."""
    members = _members(house, member)
    with points(house) as service:
        _write(out, TRANSACTION, _transactions(service, members), None)


def _members(house: Path | None, named: Sequence[str] | None) -> list[str]:
    return list(dict.fromkeys(named)) if named else run(_announced(house))


async def _announced(house: Path | None) -> list[str]:
    """Every member that the stream knows of; bodies stay where they are."""
    members: dict[str, None] = {}
    first: datetime | None = None
    async with stream(house) as client:
        subject = PointsPosted.DESCRIPTOR.full_name
        async for message in read(client, subject, from_start=True, follow=False, headers_only=True):
            first = first or message.metadata.timestamp
            members[(message.headers or {})["ce-subject"]] = None
    since = f" since {first:%Y-%m-%d %H:%M:%S} UTC" if first else ""
    err.print(
        f"{len(members)} members have events in the stream{since}; others only by --member", style="dim"
    )
    return list(members)


def _balances(service: Points, members: Sequence[str]) -> Iterator[list[object]]:
    for start in range(0, len(members), PAGE):
        asked = members[start : start + PAGE]
        request = pb.BatchGetBalancesRequest(member_ids=asked)
        answer = service.call(service.stub.BatchGetBalances, request)
        for balance in answer.balances:
            yield [getattr(balance, name) for name in BALANCE]
        for unknown in dict.fromkeys(asked).keys() - {balance.member_id for balance in answer.balances}:
            err.print(f"{unknown}: nothing was ever posted for this member")


def _transactions(service: Points, members: Iterable[str]) -> Iterator[list[object]]:
    for member in members:
        request = pb.ListTransactionsRequest(member_id=member, page_size=PAGE)
        while True:
            page = service.call(service.stub.ListTransactions, request)
            yield from map(_transaction, page.transactions)
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token


def _transaction(tx: pb.Transaction) -> list[object]:
    kind = pb.TransactionKind.Name(tx.kind).removeprefix("TRANSACTION_KIND_")
    return [
        *(tx.member_id, tx.seq, tx.transaction_id, kind),
        *(tx.occur_time.ToJsonString(), tx.create_time.ToJsonString()),
        *(getattr(tx, name) for name in IDS),
        *(_change(tx, pb.UNIT_POINTS), _change(tx, pb.UNIT_GROWTH)),
        *(getattr(tx.balance, name) for name in AFTER),
        tx.programme_version,
    ]


def _change(tx: pb.Transaction, unit: int) -> int:
    """What the member has more of; moves between the member's own accounts are none."""
    change = 0
    for transfer in tx.transfers:
        if transfer.unit == unit:
            gained = int(transfer.credit < pb.ACCOUNT_ISSUER_EARNED)
            lost = int(transfer.debit < pb.ACCOUNT_ISSUER_EARNED)
            change += transfer.amount * (gained - lost)
    return change


def _write(out: Path, header: Sequence[str], rows: Iterable[Sequence[object]], total: int | None) -> None:
    """Streams rows into the file, which appears only when it is whole."""
    partial = out.with_name(f"{out.name}.partial")
    with Progress(console=err) as progress, partial.open("w", newline="", encoding="utf-8") as file:
        task = progress.add_task(out.name, total=total)
        writer = csv.writer(file)
        writer.writerow(header)
        for row in rows:
            writer.writerow(row)
            progress.advance(task)
    os.replace(partial, out)
