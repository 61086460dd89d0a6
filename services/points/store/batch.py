"""Reading what a batch of commands sees under the lock, and writing what it did: a statement per table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date, datetime
from typing import Any

import sqlalchemy as sa
from loyalty.orders.v1.orders_pb2 import OrderRefunded
from sqlalchemy.dialects.postgresql import insert

from services.chassis.consumer import Delivery
from services.chassis.database import Connection, Insert, Row, Statement, columns, insert_rows, rows_of
from services.chassis.ids import bucket
from services.chassis.statements import dropping, given_members, keyed, keys
from services.points import tables as t
from services.points.domain.ledger import HASH_VERSION, Account, Hold, Member
from services.points.store.boxes import DEAD_LETTERS, INBOX
from services.points.store.past import load_past
from services.points.store.programmes import head_version, head_version_at
from services.points.store.rows import (
    BALANCES,
    LOT,
    facts_json,
    member_row,
    to_hold,
    to_lot,
    to_member,
    to_transaction,
)
from services.points.store.wanted import Changes, Entry, RefundRow, Seen, Wanted

REFUNDED = OrderRefunded.DESCRIPTOR.full_name


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
        "holds": Statement(
            sa.select(t.holds)
            .join_from(given, t.holds, mine(t.holds))
            .where(t.holds.c.state == sa.literal_column("'PLACED'"))
        ),
        "growth": Statement(
            sa.select(t.growth_days.c.member_id, t.growth_days.c.day, t.growth_days.c.amount)
            .join_from(given, t.growth_days, mine(t.growth_days))
            .where(t.growth_days.c.day >= sa.bindparam("since", type_=sa.Date))
        ),
        "growth sum": Statement(
            sa.select(t.growth_days.c.member_id, sa.func.sum(t.growth_days.c.amount).label("amount"))
            .join_from(given, t.growth_days, mine(t.growth_days))
            .where(t.growth_days.c.day >= sa.bindparam("since", type_=sa.Date))
            .group_by(t.growth_days.c.member_id)
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
        # OFFSET 0 keeps it one lookup after the other: a plan made for a small table would read all of it.
        first = sa.select(*_FIRST_ANSWER).where(mine).offset(sa.literal_column("0")).lateral()
        selects.append(sa.select(by, *first.c).join_from(given, first, sa.true()))
    return Statement(sa.union_all(*selects))


# What a first answer is made of; not the stored order, which may be long.
_FIRST_ANSWER = [column for column in t.transactions.c if column.name not in ("source", "sold")]
_KNOWN = _known_statement()


async def lock(connection: Connection, wanted: Wanted, at: datetime) -> Seen:
    """Locks the members in order, then reads what the batch may depend on.

    Members with credits are made if they are not there. Lots and open holds are loaded where something is
    taken or due, or where a refund waits for its order.
    """
    rows = await _lock_members(connection, wanted, at)
    members = {row["member_id"]: to_member(row) for row in rows}
    await _load_lots(connection, [m for m in members.values() if m.seq and _needs_lots(m, wanted, at)])
    head = rows[0]["head_version"] if rows else await head_version(connection, at)
    seen = Seen(members, head)
    seen.events = await INBOX.known(connection, wanted.events)
    await _load_known(connection, wanted, seen)
    waiting = {(member, order) for member, order in wanted.orders if _waits(members.get(member))}
    past = (wanted.refunded, wanted.pasts, wanted.pasts_by_request, wanted.holds, wanted.captures, waiting)
    if any(past):
        await load_past(connection, wanted, waiting, seen)
    return seen


def _waits(member: Member | None) -> bool:
    return member is not None and member.waiting > 0


def _needs_lots(member: Member, wanted: Wanted, at: datetime) -> bool:
    due = member.next_due_time is not None and member.next_due_time <= at
    return member.member_id in wanted.debits or due or _waits(member)


async def _load_lots(connection: Connection, members: Sequence[Member]) -> None:
    by_id = {member.member_id: member for member in members}
    for member in members:
        member.unloaded_due_time = None
    for row in await _MEMBERS["lots"].fetch_rows(connection, keys(by_id)):
        by_id[row["member_id"]].lots.append(to_lot([row[name] for name in LOT]))
    holding = [m.member_id for m in members if m.balances[Account.HELD]]
    for row in await _MEMBERS["holds"].fetch_rows(connection, keys(holding)):
        by_id[row["member_id"]].holds.append(to_hold(row))


async def load_growth(connection: Connection, members: Sequence[Member], since: date) -> None:
    """Loads the members' growth per local day, from a day on."""
    by_id = {member.member_id: member for member in members}
    for member in members:
        member.growth_days = {}
    for row in await _MEMBERS["growth"].fetch_rows(connection, keys(by_id), since=since):
        days = by_id[row["member_id"]].growth_days
        assert days is not None  # noqa: S101 - made above
        days[row["day"]] = row["amount"]


async def sum_growth(connection: Connection, members: Sequence[Member], since: date) -> None:
    """Loads the members' growth from a day on, as if all of it were that day's."""
    by_id = {member.member_id: member for member in members}
    for member in members:
        member.growth_days = {}
    old = [member.member_id for member in members if member.seq]
    for row in await _MEMBERS["growth sum"].fetch_rows(connection, keys(old), since=since):
        by_id[row["member_id"]].growth_days = {since: int(row["amount"])}


async def _load_known(connection: Connection, wanted: Wanted, seen: Seen) -> None:
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
_MEMBER_STATE = (
    *(*BALANCES, "seq", "head_hash", "version", "tier", "tier_until", "waiting"),
    *("last_time", "next_due_time"),
)


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
    names = ("bucket", "member_id", "seq", "part", "pending", "remaining", "held", "expired")
    given = rows_of(**{name: t.lots.c[name].type for name in names})
    return Statement(
        sa.update(t.lots)
        .where(*(t.lots.c[name] == given.c[name] for name in names[:4]))
        .values({name: given.c[name] for name in names[4:]})
    )


def _update_facts() -> Statement:
    given = rows_of(bucket=sa.SmallInteger, member_id=sa.Text, facts=sa.Text)
    c = t.members.c
    return Statement(
        sa.update(t.members)
        .where(c.bucket == given.c.bucket, c.member_id == given.c.member_id)
        .values(facts=sa.cast(given.c.facts, c.facts.type))
    )


def _update_holds() -> Statement:
    names = ("bucket", "member_id", "seq", "state", "captured")
    given = rows_of(**{name: t.holds.c[name].type for name in names})
    return Statement(
        sa.update(t.holds)
        .where(*(t.holds.c[name] == given.c[name] for name in names[:3]))
        .values(state=given.c.state, captured=given.c.captured)
    )


def _apply_refunds() -> Statement:
    """Those that waited have their transaction now, and need not be kept as they came."""
    names = ("bucket", "member_id", "order_id", "refund_id", "seq")
    given = rows_of(**{name: t.refunds.c[name].type for name in names})
    return Statement(
        sa.update(t.refunds)
        .where(*(t.refunds.c[name] == given.c[name] for name in names[:4]))
        .values(seq=given.c.seq, body=None)
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
_UPDATE_FACTS = _update_facts()
_ADD_HOLDS = Insert(t.holds)
_UPDATE_HOLDS = _update_holds()
_ADD_REFUNDS = Insert(t.refunds)
_APPLY_REFUNDS = _apply_refunds()
_DROP_REFUNDS = dropping(t.refunds)
_ADD_CAPS = _add_to(t.cap_uses, "used")
_ADD_GROWTH = _add_to(t.growth_days, "amount")


async def save(connection: Connection, changes: Changes, received: datetime) -> None:
    """Writes what a batch did, a statement per table; `received` is wall time."""
    await _UPDATE_MEMBERS.execute_rows(connection, [member_row(m) for m in changes.members])
    await _ADD_TRANSACTIONS.rows(connection, [_transaction_row(entry) for entry in changes.entries])
    await _DROP_UNBORN.execute_rows(connection, keys(changes.unborn))
    await _save_lots(connection, changes)
    await _ADD_CAPS.execute_rows(
        connection, [(bucket(m), m, rule, day, used) for (m, rule, day), used in sorted(changes.caps.items())]
    )
    await _ADD_GROWTH.execute_rows(
        connection, [(bucket(m), m, day, amount) for (m, day), amount in sorted(changes.growth.items())]
    )
    await _ADD_NOTES.rows(
        connection,
        [
            (bucket(tx.member_id), tx.member_id, tx.seq, entry.note)
            for tx, entry in ((entry.transaction, entry) for entry in changes.entries)
            if entry.note
        ],
    )
    await INBOX.add(connection, changes.events, received)
    if changes.holds:
        await _save_holds(connection, changes.holds)
    if changes.refunds or changes.refused:
        await _save_refunds(connection, changes)
    if changes.facts:
        told = [m for m in changes.members if m.member_id in changes.facts]
        await _UPDATE_FACTS.execute_rows(
            connection, [(bucket(m.member_id), m.member_id, facts_json(m.facts)) for m in told]
        )


async def _save_lots(connection: Connection, changes: Changes) -> None:
    await _ADD_LOTS.rows(
        connection,
        [
            (
                *(bucket(m), m, lot.seq, lot.part, lot.pending, lot.available_at, lot.expires_at),
                *(lot.amount, lot.remaining, lot.held, lot.expired),
            )
            for m, lot in changes.lots
            if not lot.stored
        ],
    )
    await _UPDATE_LOTS.execute_rows(
        connection,
        [
            (bucket(m), m, lot.seq, lot.part, lot.pending, lot.remaining, lot.held, lot.expired)
            for m, lot in changes.lots
            if lot.stored
        ],
    )
    await _ADD_USES.rows(
        connection,
        [
            (bucket(tx.member_id), tx.member_id, tx.seq, *name, amount)
            for tx, uses in ((entry.transaction, entry.uses) for entry in changes.entries)
            for name, amount in uses.items()
        ],
    )


async def _save_holds(connection: Connection, holds: Sequence[tuple[str, Hold]]) -> None:
    await _ADD_HOLDS.rows(
        connection,
        [
            (
                *(bucket(m), m, hold.seq, hold.hold_id, hold.reference_id, hold.amount, hold.expire_time),
                json.dumps([(*name, amount) for name, amount in hold.pins.items()]),
                *(hold.state, hold.captured),
            )
            for m, hold in holds
            if not hold.stored
        ],
    )
    await _UPDATE_HOLDS.execute_rows(
        connection, [(bucket(m), m, hold.seq, hold.state, hold.captured) for m, hold in holds if hold.stored]
    )


async def _save_refunds(connection: Connection, changes: Changes) -> None:
    await _ADD_REFUNDS.rows(connection, [_refund_row(row) for row in changes.refunds if not row.stored])
    await _APPLY_REFUNDS.execute_rows(
        connection, [(*_refund_key(row), row.seq) for row in changes.refunds if row.stored]
    )
    await _DROP_REFUNDS.execute_rows(
        connection, [_refund_key(row) for row, _ in changes.refused if row.stored]
    )
    for row, refusal in changes.refused:
        assert row.event is not None and row.body is not None  # noqa: PT018, S101 - it waited
        _member, consumer, source, event_id, stream, stream_seq = row.event
        letter = Delivery(REFUNDED, row.body, source, event_id, "", stream, stream_seq)
        await DEAD_LETTERS.bury(connection, consumer, letter, refusal)


def _refund_key(row: RefundRow) -> tuple[Any, ...]:
    return (bucket(row.member_id), *row.key)


def _refund_row(row: RefundRow) -> tuple[Any, ...]:
    event, refund = row.event, row.refund
    return (
        *(*_refund_key(row), row.body_hash, refund.amount, json.dumps(dict(refund.lines))),
        *(refund.everything, row.refund_time, row.seq),
        *(event[1:] if event else (None,) * 5),
        row.body if row.seq is None else None,
    )


def _transaction_row(entry: Entry) -> tuple[Any, ...]:
    tx, b, sold = entry.transaction, entry.transaction.balance, entry.sold
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
        None if sold is None else json.dumps((sold.tier, sold.facts, sold.used, sold.total)),
    )
