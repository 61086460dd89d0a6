"""What refunds and reversals look back on: past transactions, what they took, and what undid them since."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from services.chassis.database import Connection, Row, Statement, rows_of
from services.chassis.ids import bucket, number_of
from services.chassis.inbox import InboxKey
from services.chassis.statements import given_members, keyed, keys
from services.points import tables as t
from services.points.domain.ledger import Member
from services.points.domain.refunds import Refund
from services.points.domain.reversal import Past
from services.points.store.rows import (
    LOT,
    to_hold,
    to_lot,
    to_transaction,
)
from services.points.store.wanted import RefundRow, Seen, Sold, Wanted


def _of(table: sa.Table, *columns: str, chosen: Iterable[sa.ColumnElement[Any]] = ()) -> Statement:
    """Rows of a table by bucket, member and further columns."""
    names = ("bucket", "member_id", *columns)
    given = rows_of(**{name: table.c[name].type for name in names})
    mine = sa.and_(*(table.c[name] == given.c[name] for name in names))
    return Statement(sa.select(*(chosen or table.c)).join_from(given, table, mine))


def _captures() -> Statement:
    """The captures of members that events asked for: their requests are ours."""
    given, mine = given_members()
    c = t.transactions.c
    by_event = sa.func.left(c.request_id, sa.literal_column("1")) == sa.literal_column("'~'")
    captures = (mine(t.transactions), c.kind == sa.literal_column("'CAPTURE'"), by_event)
    return Statement(
        sa.select(c.member_id, c.seq, c.reference_id).join_from(given, t.transactions, sa.and_(*captures))
    )


_CAPTURES = _captures()
_PASTS = _of(t.transactions, "seq")
_REVERSALS = _of(t.transactions, "reverses_transaction_id")
_USES = _of(t.lot_uses, "seq")
_LOTS = _of(t.lots, "seq", chosen=[t.lots.c.member_id, *(t.lots.c[name] for name in LOT)])
_HOLDS = _of(t.holds, "seq")
_REFUNDS = _of(t.refunds, "order_id")


async def load_past(
    connection: Connection, wanted: Wanted, waiting: set[tuple[str, str]], seen: Seen
) -> None:
    """Loads what is to be undone, with its lots and refunds, into `seen`; `waiting` are orders of refunds
    that came before them.
    """
    chosen = set(wanted.pasts)
    chosen |= {(m, seen.orders[m, o][0].seq) for m, o in wanted.refunded if (m, o) in seen.orders}
    placed = {key: seen.requests[key].seq for key in wanted.pasts_by_request if key in seen.requests}
    chosen |= {(member, seq) for (member, _), seq in placed.items()}
    captures = await _CAPTURES.fetch_rows(connection, keys(wanted.captures & seen.members.keys()))
    chosen |= {(row["member_id"], row["seq"]) for row in captures}
    captured = {(row["member_id"], number_of(row["reference_id"])) for row in captures}
    await _load_transactions(connection, chosen, seen)
    await _load_holds(connection, wanted.holds | chosen | captured, seen)
    for row in await _REFUNDS.fetch_rows(connection, keyed(wanted.refunded | waiting)):
        found = _to_refund(row)
        seen.refunds.setdefault((found.member_id, found.order_id), []).append(found)


async def _load_transactions(connection: Connection, chosen: set[tuple[str, int]], seen: Seen) -> None:
    by_id: dict[tuple[str, str], Past] = {}
    by_seq: dict[tuple[str, int], Past] = {}
    for row in await _PASTS.fetch_rows(connection, _numbered(chosen)):
        key = (row["member_id"], row["seq"])
        past = seen.pasts[key] = by_seq[key] = Past(to_transaction(row))
        by_id[row["member_id"], row["transaction_id"]] = past
        if row["sold"] is not None:
            seen.sold[key] = Sold(row["source"], *json.loads(row["sold"]))
    for row in await _REVERSALS.fetch_rows(connection, keyed(by_id)):
        reversal = Past(to_transaction(row))
        by_id[row["member_id"], row["reverses_transaction_id"]].reversals.append(reversal)
        by_seq[row["member_id"], row["seq"]] = reversal
    for past in by_id.values():
        past.reversals.sort(key=lambda reversal: reversal.transaction.seq)
    lots = set(chosen)
    for row in await _USES.fetch_rows(connection, _numbered(by_seq)):
        by_seq[row["member_id"], row["seq"]].uses[row["lot_seq"], row["lot_part"]] = row["amount"]
        lots.add((row["member_id"], row["lot_seq"]))
    await _load_lots(connection, lots, seen)


async def _load_lots(connection: Connection, numbers: set[tuple[str, int]], seen: Seen) -> None:
    """Adds lots of those numbers that are used up: the others are loaded."""
    known = {(m.member_id, lot.name) for m in seen.members.values() for lot in m.lots}
    for row in await _LOTS.fetch_rows(connection, _numbered(numbers)):
        lot = to_lot([row[name] for name in LOT])
        if (row["member_id"], lot.name) not in known:
            seen.members[row["member_id"]].lots.append(lot)


async def _load_holds(connection: Connection, numbers: set[tuple[str, int]], seen: Seen) -> None:
    """Adds holds of those numbers that are closed: the others are loaded."""
    for row in await _HOLDS.fetch_rows(connection, _numbered(numbers)):
        member: Member = seen.members[row["member_id"]]
        if all(hold.seq != row["seq"] for hold in member.holds):
            member.holds.append(to_hold(row))


def _numbered(numbers: Iterable[tuple[str, int]]) -> list[tuple[int, str, int]]:
    return [(bucket(member_id), member_id, seq) for member_id, seq in numbers]


def _to_refund(row: Row) -> RefundRow:
    event = None
    if row["event_id"] is not None:
        event = InboxKey(
            row["member_id"],
            row["consumer"],
            row["source"],
            row["event_id"],
            row["stream"],
            row["stream_seq"],
        )
    return RefundRow(
        row["member_id"],
        row["order_id"],
        row["refund_id"],
        row["body_hash"],
        Refund(row["amount"], json.loads(row["lines"]), row["everything"]),
        row["refund_time"],
        row["seq"],
        event,
        row["body"],
        stored=True,
    )
