"""What a batch of commands sees under the lock, and what it writes: a statement per table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from services.chassis.database import Connection, Insert, Row, Statement, columns, insert_rows, rows_of
from services.chassis.ids import bucket
from services.chassis.inbox import InboxKey
from services.points import tables as t
from services.points.domain.ledger import HASH_VERSION, Lot, Member, Transaction
from services.points.store.boxes import INBOX
from services.points.store.programmes import head_version_at
from services.points.store.rows import (
    BALANCES,
    LOT,
    given_members,
    keyed,
    keys,
    member_row,
    to_lot,
    to_member,
    to_transaction,
)


@dataclass(slots=True)
class Wanted:
    """What a batch needs to see under the lock."""

    credits: set[str] = field(default_factory=set)  # members to whom something may come
    debits: set[str] = field(default_factory=set)
    requests: set[tuple[str, str]] = field(default_factory=set)
    orders: set[tuple[str, str]] = field(default_factory=set)
    activities: set[tuple[str, str]] = field(default_factory=set)
    events: list[InboxKey] = field(default_factory=list)


@dataclass(slots=True)
class Seen:
    """What the database says, locked until commit."""

    members: dict[str, Member]
    head: int | None
    """The version of the programme in force; None too where no member was there to be locked."""
    requests: dict[tuple[str, str], Transaction] = field(default_factory=dict)
    orders: dict[tuple[str, str], tuple[Transaction, bytes]] = field(default_factory=dict)
    activities: dict[tuple[str, str], tuple[Transaction, bytes]] = field(default_factory=dict)
    events: set[tuple[str, ...]] = field(default_factory=set)
    caps: dict[tuple[str, date], dict[str, int]] = field(default_factory=dict)


@dataclass(slots=True)
class Entry:
    """A new transaction with what is kept beside it."""

    transaction: Transaction
    source: bytes | None = None
    source_hash: bytes | None = None
    facts: Mapping[str, Any] | None = None
    note: str = ""
    uses: Sequence[tuple[Lot, int]] = ()


@dataclass(slots=True)
class Changes:
    """What a batch did."""

    members: list[Member] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    lots: list[tuple[str, Lot]] = field(default_factory=list)  # touched, by member
    caps: dict[tuple[str, str, date], int] = field(default_factory=dict)  # added, by member and rule
    growth: dict[tuple[str, date], int] = field(default_factory=dict)  # added, by member
    unborn: list[str] = field(default_factory=list)  # members made for the lock to whom nothing came
    events: list[InboxKey] = field(default_factory=list)


def _statements_about_members() -> dict[str, Statement]:
    given, mine = given_members()
    return {
        "add": Statement(
            insert(t.members)
            .from_select(
                ["bucket", "member_id"],
                sa.select(given.c.bucket, given.c.member_id).order_by(given.c.bucket, given.c.member_id),
            )
            .on_conflict_do_nothing()
        ),
        "lock": Statement(
            sa.select(t.members, head_version_at(sa.bindparam("at", type_=t.INSTANT)).label("head_version"))
            .join_from(given, t.members, mine(t.members))
            .order_by(t.members.c.bucket, t.members.c.member_id)
            .with_for_update(of=t.members)
        ),
        "lots": Statement(
            sa.select(t.lots.c.member_id, *(t.lots.c[name] for name in LOT))
            .join_from(given, t.lots, mine(t.lots))
            .where(t.lots.c.remaining > 0)
        ),
    }


_MEMBERS = _statements_about_members()


def _known_statement() -> Statement:
    """Transactions of members by request, by order earned, and by activity earned, told apart by `by`."""
    c = t.transactions.c
    ways = {
        "request": c.request_id == sa.column("key"),
        "order": sa.and_(c.order_id == sa.column("key"), c.kind == sa.literal_column("'EARN'")),
        "activity": c.activity_id == sa.column("key"),
    }
    selects = []
    for way, matches in ways.items():
        given = rows_of(way, bucket=sa.SmallInteger, member_id=sa.Text, key=sa.Text)
        mine = sa.and_(c.bucket == given.c.bucket, c.member_id == given.c.member_id, matches)
        by: Any = sa.literal_column(f"'{way}'").label("by")
        selects.append(sa.select(by, *_FIRST_ANSWER).join_from(given, t.transactions, mine))
    return Statement(sa.union_all(*selects))


# What a first answer is made of; not the stored order, which may be long.
_FIRST_ANSWER = [column for column in t.transactions.c if column.name not in ("source", "facts")]
_KNOWN = _known_statement()


async def lock(connection: Connection, wanted: Wanted, at: datetime) -> Seen:
    """Locks the members in order, then reads what the batch may depend on.

    Members with credits are made if they are not there. Lots are loaded where something is taken or due.
    """
    rows = await _lock_members(connection, wanted, at)
    members = {row["member_id"]: to_member(row) for row in rows}
    needing = [
        m
        for m in members.values()
        if m.seq and (m.member_id in wanted.debits or (m.next_due_time is not None and m.next_due_time <= at))
    ]
    for member in needing:
        member.unloaded_due_time = None
    for row in await _MEMBERS["lots"].fetch_rows(connection, keys(m.member_id for m in needing)):
        members[row["member_id"]].lots.append(to_lot([row[name] for name in LOT]))
    seen = Seen(members, head=rows[0]["head_version"] if rows else None)
    if wanted.events:
        seen.events = await INBOX.known(connection, wanted.events)
    ways = {"request": wanted.requests, "order": wanted.orders, "activity": wanted.activities}
    arguments = {
        f"{way}_{column}": values
        for way, pairs in ways.items()
        for column, values in zip(("bucket", "member_id", "key"), columns(keyed(pairs), 3), strict=True)
    }
    for row in await _KNOWN.fetch(connection, **arguments):
        transaction = to_transaction(row)
        match row["by"]:
            case "request":
                seen.requests[row["member_id"], row["request_id"]] = transaction
            case "order":
                seen.orders[row["member_id"], row["order_id"]] = (transaction, row["source_hash"])
            case _:
                seen.activities[row["member_id"], row["activity_id"]] = (transaction, row["source_hash"])
    return seen


async def _lock_members(connection: Connection, wanted: Wanted, at: datetime) -> list[Row]:
    """Most members are known: only where some are not does it take a second and a third statement.

    Rows are made after the locks are taken, so two processes that make the same members wait for each
    other in the order of the keys; where that fails, PostgreSQL ends one, and its items run singly.
    """
    asked = wanted.credits | wanted.debits
    rows = await _MEMBERS["lock"].fetch_rows(connection, keys(asked), at=at)
    missing = keys(wanted.credits - {row["member_id"] for row in rows})
    if missing:
        await _MEMBERS["add"].execute_rows(connection, missing)
        rows += await _MEMBERS["lock"].fetch_rows(connection, missing, at=at)
    return rows


_ADD_TRANSACTIONS = Insert(t.transactions)
_ADD_LOTS = Insert(t.lots)
_ADD_USES = Insert(t.lot_uses)
_ADD_NOTES = Insert(t.notes)
_MEMBER_STATE = (*BALANCES, "seq", "head_hash", "version", "last_time", "next_due_time")


def _update_members() -> Statement:
    names = ("bucket", "member_id", *_MEMBER_STATE)
    given = rows_of(**{name: t.members.c[name].type for name in names})
    c = t.members.c
    return Statement(
        sa.update(t.members)
        .where(c.bucket == given.c.bucket, c.member_id == given.c.member_id)
        .values({name: given.c[name] for name in _MEMBER_STATE})
    )


def _update_lots() -> Statement:
    names = ("bucket", "member_id", "seq", "part", "pending", "remaining")
    given = rows_of(**{name: t.lots.c[name].type for name in names})
    return Statement(
        sa.update(t.lots)
        .where(*(t.lots.c[name] == given.c[name] for name in names[:4]))
        .values(pending=given.c.pending, remaining=given.c.remaining)
    )


def _add_to(table: sa.Table, counter: str) -> Statement:
    """Adds to a counter of a member, making its row if need be."""
    upsert = insert_rows(table, *table.c.keys())
    return Statement(
        upsert.on_conflict_do_update(
            index_elements=list(table.primary_key.columns),
            set_={counter: table.c[counter] + upsert.excluded[counter]},
        )
    )


def _drop_unborn() -> Statement:
    _given, mine = given_members()
    return Statement(sa.delete(t.members).where(mine(t.members), t.members.c.seq == sa.literal_column("0")))


_UPDATE_MEMBERS = _update_members()
_DROP_UNBORN = _drop_unborn()
_UPDATE_LOTS = _update_lots()
_ADD_CAPS = _add_to(t.cap_uses, "used")
_ADD_GROWTH = _add_to(t.growth_days, "amount")


async def save(connection: Connection, changes: Changes, received: datetime) -> None:
    """Writes what a batch did, a statement per table; `received` is wall time."""
    await _UPDATE_MEMBERS.execute_rows(connection, [member_row(m) for m in changes.members])
    await _ADD_TRANSACTIONS.rows(connection, [_transaction_row(entry) for entry in changes.entries])
    await _DROP_UNBORN.execute_rows(connection, keys(changes.unborn))
    fresh = [(m, lot) for m, lot in changes.lots if not lot.stored]
    touched = [(m, lot) for m, lot in changes.lots if lot.stored]
    amounts = _original_amounts(changes)
    await _ADD_LOTS.rows(
        connection,
        [
            (
                bucket(m),
                m,
                lot.seq,
                lot.part,
                lot.pending,
                lot.available_at,
                lot.expires_at,
                lot.remaining + amounts.get((m, lot.seq, lot.part), 0),
                lot.remaining,
            )
            for m, lot in fresh
        ],
    )
    await _UPDATE_LOTS.execute_rows(
        connection, [(bucket(m), m, lot.seq, lot.part, lot.pending, lot.remaining) for m, lot in touched]
    )
    await _ADD_USES.rows(
        connection,
        [
            (bucket(tx.member_id), tx.member_id, tx.seq, lot.seq, lot.part, amount)
            for tx, uses in ((entry.transaction, entry.uses) for entry in changes.entries)
            for lot, amount in uses
        ],
    )
    await _ADD_CAPS.execute_rows(
        connection, [(bucket(m), m, rule, day, used) for (m, rule, day), used in sorted(changes.caps.items())]
    )
    await _ADD_GROWTH.execute_rows(
        connection, [(bucket(m), m, day, amount) for (m, day), amount in sorted(changes.growth.items())]
    )
    await _ADD_NOTES.rows(
        connection,
        [
            (
                bucket(entry.transaction.member_id),
                entry.transaction.member_id,
                entry.transaction.seq,
                entry.note,
            )
            for entry in changes.entries
            if entry.note
        ],
    )
    await INBOX.add(connection, changes.events, received)


def _original_amounts(changes: Changes) -> dict[tuple[str, int, int], int]:
    """What this batch took from lots, so that a lot made and used in one batch keeps its amount."""
    taken: dict[tuple[str, int, int], int] = {}
    for entry in changes.entries:
        for lot, amount in entry.uses:
            key = (entry.transaction.member_id, lot.seq, lot.part)
            taken[key] = taken.get(key, 0) + amount
    return taken


def _transaction_row(entry: Entry) -> tuple[Any, ...]:
    tx, b = entry.transaction, entry.transaction.balance
    return (
        bucket(tx.member_id),
        tx.member_id,
        tx.seq,
        tx.transaction_id,
        tx.kind,
        tx.request_id,
        tx.payload_hash,
        tx.order_id or None,
        tx.activity_id or None,
        tx.reference_id or None,
        tx.reverses_transaction_id or None,
        tx.occur_time,
        tx.create_time,
        tx.programme_version,
        tx.actor,
        json.dumps([(m.unit, m.debit, m.credit, m.amount) for m in tx.transfers]),
        json.dumps([(c.rule_id, c.unit, c.amount, c.error) for c in tx.contributions]),
        b.available,
        b.pending,
        b.held,
        b.owed,
        b.growth,
        b.lifetime_earned,
        HASH_VERSION,
        tx.hash,
        entry.source_hash,
        entry.source,
        None if entry.facts is None else json.dumps(entry.facts),
    )
