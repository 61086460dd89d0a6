"""What the clock asks for: who and what is due, who is to leave a group, and what was done so often."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import date, datetime
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from services.chassis.database import Connection, Statement, rows_of
from services.chassis.statements import one_of
from services.groups import tables as t
from services.groups.domain.profile import MembershipStatus
from services.groups.domain.seats import Group
from services.groups.store.rows import to_group

_AT = sa.bindparam("at", type_=t.INSTANT)
_MOST = sa.bindparam("most", type_=sa.BigInteger)
_AFTER = sa.bindparam("after", type_=sa.Text)

# --- who and what is due ------------------------------------------------------------------------------


def _due(table: sa.Table, time: str, *such: sa.ColumnElement[bool]) -> sa.Select[tuple[datetime]]:
    due = table.c[time]
    return sa.select(table).where(due <= _AT, *such).order_by(due).limit(_MOST)


_DUE_MEMBERS = Statement(_due(t.members, "next_due_time").with_only_columns(t.members.c.member_id))
_CLOSING_GROUPS = Statement(
    _due(t.groups, "close_time", t.groups.c.status != sa.literal_column("'DISSOLVED'"))
)
_ANNOUNCING_GROUPS = Statement(_due(t.groups, "next_occasion_time"))


async def due_members(connection: Connection, at: datetime, most: int) -> list[str]:
    """Members for whom something fell due, longest ago first."""
    rows = await _DUE_MEMBERS.fetch(connection, at=at, most=most)
    return [row["member_id"] for row in rows]


async def closing_groups(connection: Connection, at: datetime, most: int) -> list[Group]:
    """Groups that were to be dissolved by then, longest ago first."""
    return [to_group(row) for row in await _CLOSING_GROUPS.fetch(connection, at=at, most=most)]


async def announcing_groups(connection: Connection, at: datetime, most: int) -> list[Group]:
    """Groups whose calendar was to be looked at by then, longest ago first."""
    return [to_group(row) for row in await _ANNOUNCING_GROUPS.fetch(connection, at=at, most=most)]


# --- who is to leave ----------------------------------------------------------------------------------

_LEAVING_GROUPS = Statement(
    sa.select(t.groups)
    .where(t.groups.c.leaving, t.groups.c.group_id > _AFTER)
    .order_by(t.groups.c.group_id)
    .limit(_MOST)
)


def _crowded_seats() -> Statement:
    crowded = (
        sa.select(t.groups.c.group_id)
        .where(t.groups.c.crowded, t.groups.c.group_id > _AFTER)
        .order_by(t.groups.c.group_id)
        .limit(_MOST)
        .subquery("crowded_groups")
    )
    m = t.memberships.c
    kept = (
        sa.select(m.bucket, m.member_id)
        .where(m.group_id == crowded.c.group_id, m.end_time.is_(None))
        .where(one_of(m.status, MembershipStatus.ASSIGNED))
        .lateral("kept")
    )
    return Statement(
        sa.select(crowded.c.group_id, kept.c.member_id)
        .join_from(crowded, kept, sa.true(), isouter=True)
        .order_by(crowded.c.group_id, kept.c.bucket, kept.c.member_id)
    )


_CROWDED_SEATS = _crowded_seats()


async def leaving_groups(connection: Connection, after: str, most: int) -> list[Group]:
    """Closed and dissolved groups that somebody is still in, by `group_id`; `""` begins."""
    return [to_group(row) for row in await _LEAVING_GROUPS.fetch(connection, after=after, most=most)]


async def crowded_seats(connection: Connection, after: str, most: int) -> dict[str, list[str]]:
    """Of groups of which the platform takes nobody more, by `group_id`, the members whose seats are kept.

    So many groups at most; `""` begins.
    """
    found: dict[str, list[str]] = {}
    for row in await _CROWDED_SEATS.fetch(connection, after=after, most=most):
        members = found.setdefault(row["group_id"], [])
        if row["member_id"] is not None:
            members.append(row["member_id"])
    return found


# --- what was done ------------------------------------------------------------------------------------


class Announced(NamedTuple):
    """An occasion of a group's calendar."""

    group_id: str
    occasion_id: str
    due_time: datetime


def _add_occasions() -> Statement:
    names = t.occasions.c.keys()
    given = rows_of(**{name: t.occasions.c[name].type for name in names})
    return Statement(
        insert(t.occasions)
        .from_select(names, sa.select(*(given.c[name] for name in names)).order_by(given.c.ordinality))
        .on_conflict_do_nothing()
        .returning(*t.occasions.c)
    )


_ADD_OCCASIONS = _add_occasions()
_ADD_RELOCATION = Statement(
    insert(t.relocations).values(group_id=sa.bindparam("group"), move_time=_AT).on_conflict_do_nothing()
)
_RELOCATIONS = Statement(
    sa.select(t.relocations.c.group_id, sa.func.count().label("count"))
    .where(t.relocations.c.group_id == sa.any_(sa.bindparam("groups", type_=sa.ARRAY(sa.Text))))
    .where(t.relocations.c.move_time > sa.bindparam("since", type_=t.INSTANT))
    .group_by(t.relocations.c.group_id)
)
_MOVES = Statement(
    sa.select(t.move_days.c.moves).where(t.move_days.c.day == sa.bindparam("day", type_=sa.Date))
)


async def add_occasions(connection: Connection, announced: Collection[Announced]) -> list[Announced]:
    """Remembers occasions as announced; returns those that were not yet, in the order given."""
    new = {tuple(row) for row in await _ADD_OCCASIONS.fetch_rows(connection, sorted(announced))}
    return [occasion for occasion in announced if occasion in new]


async def add_relocation(connection: Connection, group_id: str, at: datetime) -> None:
    """Remembers that a group begins to be moved out; twice at one instant counts once."""
    await _ADD_RELOCATION.execute(connection, group=group_id, at=at)


async def relocations(connection: Connection, group_ids: Iterable[str], since: datetime) -> dict[str, int]:
    """How often groups were moved out since then, as far as they were."""
    rows = await _RELOCATIONS.fetch(connection, groups=sorted(group_ids), since=since)
    return {row["group_id"]: row["count"] for row in rows}


async def moves(connection: Connection, day: date) -> int:
    """How many members were moved out on a local day, unlocked."""
    return await _MOVES.fetch_value(connection, day=day) or 0
