"""Reading without a lock: balances, transactions, what is due."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import sqlalchemy as sa

from services.chassis.database import Connection, Row, Statement, rows_of
from services.chassis.ids import bucket
from services.chassis.statements import given_members, keys
from services.points import tables as t
from services.points.domain.ledger import Hold, Member, Transaction
from services.points.store.rows import (
    HOLD,
    LOT,
    OF_MEMBER,
    to_hold,
    to_lot,
    to_member,
    to_transaction,
)


def _cap_statement() -> Statement:
    given = rows_of(bucket=sa.SmallInteger, member_id=sa.Text, day=sa.Date)
    c = t.cap_uses.c
    return Statement(
        sa.select(c.member_id, c.day, c.rule_id, c.used).join_from(
            given,
            t.cap_uses,
            sa.and_(c.bucket == given.c.bucket, c.member_id == given.c.member_id, c.day == given.c.day),
        )
    )


_CAPS = _cap_statement()


async def caps(
    connection: Connection, days: Iterable[tuple[str, date]]
) -> dict[tuple[str, date], dict[str, int]]:
    """What each rule with a daily cap gave members on local days, by member and day."""
    found: dict[tuple[str, date], dict[str, int]] = {}
    rows = [(bucket(member_id), member_id, day) for member_id, day in sorted(days)]
    for row in await _CAPS.fetch_rows(connection, rows):
        found.setdefault((row["member_id"], row["day"]), {})[row["rule_id"]] = row["used"]
    return found


def _read_statement() -> Statement:
    """One statement, so that all of a member is of one instant. Holds and growth only where they are due."""
    given, mine = given_members()
    at = sa.bindparam("at", type_=t.INSTANT)
    live = (
        sa.select(*(sa.func.array_agg(t.lots.c[name]).label(f"lot_{name}") for name in LOT))
        .where(mine(t.lots), t.lots.c.remaining > 0)
        .lateral("live")
    )
    held = (
        sa.select(*(sa.func.array_agg(t.holds.c[name]).label(f"hold_{name}") for name in HOLD))
        .where(mine(t.holds), t.holds.c.state == sa.literal_column("'PLACED'"))
        .where(t.members.c.held > 0, t.members.c.next_due_time <= at)
        .lateral("held_points")
    )
    grown = (
        sa.select(*(sa.func.array_agg(t.growth_days.c[n]).label(f"growth_{n}") for n in ("day", "amount")))
        .where(mine(t.growth_days), t.members.c.tier_until <= at)
        .lateral("grown")
    )
    return Statement(
        sa.select(t.members, live, held, grown)
        .join_from(given, t.members, mine(t.members))
        .join(live, sa.true())
        .join(held, sa.true())
        .join(grown, sa.true())
    )


_READ = _read_statement()


async def read_members(connection: Connection, member_ids: Iterable[str], at: datetime) -> dict[str, Member]:
    """Members with their live lots, as of one instant, unlocked; with what is needed to see what is due."""
    members: dict[str, Member] = {}
    for row in await _READ.fetch_rows(connection, keys(member_ids), at=at):
        member = members[row["member_id"]] = to_member(row)
        member.unloaded_due_time = None
        member.lots = [to_lot(values) for values in _aggregated(row, "lot", LOT)]
        member.holds = [
            to_hold(dict(zip(HOLD, values, strict=True))) for values in _aggregated(row, "hold", HOLD)
        ]
        member.growth_days = dict(_aggregated(row, "growth", ("day", "amount")))
    return members


def _aggregated(row: Row, prefix: str, names: Sequence[str]) -> Iterable[Any]:
    columns = [row[f"{prefix}_{name}"] for name in names]
    return [] if columns[0] is None else zip(*columns, strict=True)


def _of_hold() -> tuple[sa.ColumnElement[bool], ...]:
    return (t.holds.c.bucket == sa.bindparam("b"), t.holds.c.member_id == sa.bindparam("member"))


_HOLD = Statement(sa.select(t.holds).where(*_of_hold(), t.holds.c.seq == sa.bindparam("seq_")))
_OPEN_HOLDS = Statement(
    sa.select(t.holds)
    .where(*_of_hold(), t.holds.c.state == sa.literal_column("'PLACED'"))
    .order_by(t.holds.c.seq.desc())
    .limit(sa.bindparam("most", type_=sa.BigInteger))
)


async def find_hold(connection: Connection, member_id: str, seq: int) -> Hold | None:
    """A member's hold by the number of its transaction, as it is stored."""
    row = await _HOLD.fetch_one(connection, b=bucket(member_id), member=member_id, seq_=seq)
    return None if row is None else to_hold(row)


async def open_holds(connection: Connection, member_id: str, most: int) -> list[Hold]:
    """A member's open holds, the latest first."""
    rows = await _OPEN_HOLDS.fetch(connection, b=bucket(member_id), member=member_id, most=most)
    return [to_hold(row) for row in rows]


_WITH_NOTE = sa.select(t.transactions, t.notes.c.text).outerjoin(
    t.notes,
    sa.and_(*(t.notes.c[name] == t.transactions.c[name] for name in ("bucket", "member_id", "seq"))),
)
_ONE = Statement(sa.select(t.transactions).where(*OF_MEMBER, t.transactions.c.seq == sa.bindparam("seq_")))


def unless_null(name: str, kind: Any, condition: Callable[[Any], Any]) -> Any:
    """A filter by an argument that holds for everything when the argument is null."""
    argument = sa.bindparam(name, type_=kind)
    return sa.or_(argument.is_(None), condition(argument))


def _page_statement() -> Statement:
    c = t.transactions.c

    def moved(unit: Any) -> Any:
        path: Any = sa.literal_column("'$[*] ? (@[0] == $unit)'::jsonpath")
        return sa.func.jsonb_path_exists(
            c.transfers, path, sa.func.jsonb_build_object(sa.literal_column("'unit'"), unit)
        )

    return Statement(
        _WITH_NOTE.where(
            *OF_MEMBER,
            unless_null("before", sa.BigInteger, lambda before: c.seq < before),
            unless_null("kinds", sa.ARRAY(sa.Text), lambda kinds: c.kind == sa.any_(kinds)),
            unless_null("unit", sa.Text, moved),
            unless_null("order", sa.Text, lambda order: c.order_id == order),
            unless_null("since", t.INSTANT, lambda since: c.occur_time >= since),
            unless_null("until", t.INSTANT, lambda until: c.occur_time < until),
        )
        .order_by(c.seq.desc())
        .limit(sa.bindparam("most", type_=sa.BigInteger))
    )


_PAGE = _page_statement()


@dataclass(frozen=True, slots=True)
class Filter:
    """Which transactions a list shows; None means any."""

    kinds: list[str] | None = None
    unit: str | None = None
    order: str | None = None
    since: datetime | None = None
    until: datetime | None = None


async def find_transaction(connection: Connection, member_id: str, seq: int) -> Transaction | None:
    """A member's transaction by its number."""
    row = await _ONE.fetch_one(connection, b=bucket(member_id), member=member_id, seq_=seq)
    return None if row is None else to_transaction(row)


async def page(
    connection: Connection, member_id: str, chosen: Filter, before: int | None, most: int
) -> list[Row]:
    """Ledger rows with their note (`text`), newest first."""
    return await _PAGE.fetch(
        connection,
        b=bucket(member_id),
        member=member_id,
        before=before,
        kinds=chosen.kinds,
        unit=chosen.unit,
        order=chosen.order,
        since=chosen.since,
        until=chosen.until,
        most=most,
    )


_DUE_MEMBERS = Statement(
    sa.select(t.members.c.member_id)
    .where(t.members.c.next_due_time <= sa.bindparam("at"))
    .order_by(t.members.c.next_due_time)
    .limit(sa.bindparam("most", type_=sa.BigInteger))
)


async def due_members(connection: Connection, at: datetime, most: int) -> list[str]:
    """Members for whom something fell due, longest ago first."""
    rows = await _DUE_MEMBERS.fetch(connection, at=at, most=most)
    return [row["member_id"] for row in rows]
