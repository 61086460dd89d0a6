"""Reading what a batch of commands sees under the locks, and writing what it did: a statement per table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import chain
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import distinct_on, insert

from services.chassis.database import Connection, Insert, Row, Statement, rows_of
from services.chassis.ids import bucket
from services.chassis.statements import MEMBER, By, Lookup, Upsert, Values, given_members, keyed, keys, one_of
from services.groups import tables as t
from services.groups.domain.seats import GroupStatus
from services.groups.store.boxes import INBOX
from services.groups.store.rows import (
    group_rows,
    member_rows,
    membership_rows,
    order_rows,
    series_rows,
    tag_rows,
    to_group,
    to_membership,
    to_order,
    to_profile,
    to_tag,
)
from services.groups.store.wanted import Answered, Changes, Seen, Wanted, WantedSeries

K = TypeVar("K")
T = TypeVar("T")
SERIES = ("scheme_id", "anchor")

# --- lock ---------------------------------------------------------------------------------------------


def _lockable(table: sa.Table, *key: str) -> dict[str, Statement]:
    """Adding and locking rows in the order of their keys."""
    given = rows_of(**{name: table.c[name].type for name in key})
    mine = sa.and_(*(table.c[name] == given.c[name] for name in key))
    return {
        "add": Statement(
            insert(table)
            .from_select(
                list(key),
                sa.select(*(given.c[name] for name in key)).order_by(*(given.c[name] for name in key)),
            )
            .on_conflict_do_nothing()
            .returning(*(table.c[name] for name in key))
        ),
        "lock": Statement(
            sa.select(table)
            .join_from(given, table, mine)
            .order_by(*(table.c[name] for name in key))
            .with_for_update(of=table)
        ),
    }


def _latest_memberships() -> Statement:
    """Of each scheme that a member was in the latest; it is the active one, where there is one."""
    given, mine = given_members()
    m = t.memberships.c
    latest = (
        sa.select(t.memberships)
        .ext(distinct_on(m.scheme_id))
        .where(mine(t.memberships))
        .order_by(m.scheme_id, m.number.desc())
        .lateral("latest")
    )
    return Statement(sa.select(latest).join_from(given, latest, sa.true()))


def _groups_with_seats() -> Statement:
    """Of each series in order of number those with a seat to give, until they have as many as are wanted."""
    given = rows_of(scheme_id=sa.Text, anchor=sa.Text, seats=sa.BigInteger)
    g = t.groups.c
    before = sa.func.sum(g.room - g.seats_taken).over(order_by=g.seq, rows=(None, -1))
    # Each of them has a seat at least, so that no more of them are looked at than seats are wanted.
    there = (
        sa.select(t.groups, sa.func.coalesce(before, sa.literal_column("0")).label("seats_before"))
        .where(*(g[name] == given.c[name] for name in SERIES), one_of(g.status, GroupStatus.OPEN))
        .order_by(g.seq)
        .limit(given.c.seats)
        .lateral("there")
    )
    return Statement(
        sa.select(there).join_from(given, there, sa.true()).where(there.c.seats_before < given.c.seats)
    )


_MEMBERS = _lockable(t.members, *MEMBER)
_ANSWERS = Lookup(t.answers, named=By((*MEMBER, "request_id")))
_LATEST = _latest_memberships()
_TAGS = Lookup(t.tags, all=By(MEMBER))
_ORDERS = Lookup(t.orders, all=By(MEMBER))
_SERIES = _lockable(t.series, *SERIES)
_MOVE_DAYS = _lockable(t.move_days, "day")
_GROUPS = Lookup(
    t.groups,
    named=By(("group_id",)),
    last=By((*SERIES, "seq")),
    site=By(("site_id",), t.groups.c.site_id != sa.literal_column("''")),
)
_WITH_SEATS = _groups_with_seats()


async def lock(connection: Connection, wanted: Wanted) -> Seen:
    """Locks the members in order, and reads what is known of them; they are made if they are not there."""
    seen = Seen()
    await _lock_members(connection, wanted, seen)
    if wanted.events:
        seen.events = await INBOX.known(connection, wanted.events)
    for row in await _ANSWERS.fetch(connection, named=keyed(wanted.requests)):
        seen.answers[row["member_id"], row["request_id"]] = Answered(row["payload_hash"], row["body"])
    old = seen.profiles.keys() - seen.made
    for row in await _LATEST.fetch_rows(connection, keys(old)):
        membership = to_membership(row)
        seen.profiles[row["member_id"]].memberships[membership.membership_id] = membership
    facts_of = keys(old & {name for name, profile in seen.profiles.items() if profile.known})
    for row in await _TAGS.fetch(connection, all=facts_of):
        seen.profiles[row["member_id"]].tags[row["key"]] = to_tag(row)
    for row in await _ORDERS.fetch(connection, all=facts_of):
        seen.profiles[row["member_id"]].orders[row["order_id"]] = to_order(row)
    return seen


async def _lock_members(connection: Connection, wanted: Wanted, seen: Seen) -> None:
    rows, made = await _lock(connection, _MEMBERS, keys(wanted.members))
    seen.made = {row["member_id"] for row in made}
    seen.profiles = {row["member_id"]: to_profile(row) for row in rows}
    known = wanted.facts_of | seen.made
    for name, profile in seen.profiles.items():
        evaluated = profile.evaluate_time is not None and profile.evaluate_time <= wanted.at
        profile.known = evaluated or name in known


async def lock_series(connection: Connection, wanted: WantedSeries, seen: Seen) -> None:
    """Locks the series in order, then the day's moves, and adds what is there to what the batch sees.

    Series are made if they are not there. It comes after `lock`, once in a transaction.
    """
    rows, _ = await _lock(connection, _SERIES, sorted(wanted.seats))
    seen.series = {(row["scheme_id"], row["anchor"]): row["last_seq"] for row in rows}
    last = [(*name, seq) for name, seq in seen.series.items() if seq]
    named, sites = [(name,) for name in wanted.groups], [(name,) for name in wanted.sites]
    groups = await _GROUPS.fetch(connection, named=named, last=last, site=sites)
    seats = [(*name, wanted.seats[name]) for name, seq in seen.series.items() if seq and wanted.seats[name]]
    groups += await _WITH_SEATS.fetch_rows(connection, seats)
    seen.groups = {row["group_id"]: to_group(row) for row in groups}
    if wanted.moves_on is not None:
        rows, _ = await _lock(connection, _MOVE_DAYS, [(wanted.moves_on,)])
        seen.moves = {row["day"]: row["moves"] for row in rows}


async def _lock(
    connection: Connection, statements: Mapping[str, Statement], wanted: Sequence[tuple[Any, ...]]
) -> tuple[list[Row], list[Row]]:
    """Locks rows by their keys, which are sorted; returns them, and those that had to be made.

    Most are there: only where some are not does it take a second and a third statement. Rows are made after
    the locks are taken, so two processes that make the same ones wait for each other in the order of the
    keys; where that fails, PostgreSQL ends one, and its items run singly.
    """
    rows = await statements["lock"].fetch_rows(connection, wanted)
    there = {tuple(row)[: len(wanted[0])] for row in rows}
    missing = [key for key in wanted if key not in there]
    made = await statements["add"].fetch_rows(connection, missing)
    return rows + await statements["lock"].fetch_rows(connection, missing), made


# --- save ---------------------------------------------------------------------------------------------


def _drop(table: sa.Table) -> Statement:
    names = table.primary_key.columns.keys()
    given = rows_of(**{name: table.c[name].type for name in names})
    return Statement(sa.delete(table).where(*(table.c[name] == given.c[name] for name in names)))


def _upsert(table: sa.Table) -> Upsert:
    return Upsert(table, t.CHANGING[table.name])


_SAVE_MEMBERS = _upsert(t.members)
_DROP_MEMBERS = _drop(t.members)
# What a profile holds, by the name of the collection: the table that keeps it, and the rows of a record.
_SAVE: tuple[tuple[str, Upsert, Callable[[str, str, Any], Sequence[Values]]], ...] = (
    ("memberships", _upsert(t.memberships), membership_rows),
    ("tags", _upsert(t.tags), tag_rows),
    ("orders", _upsert(t.orders), order_rows),
)
_DROP_TAGS = _drop(t.tags)
_ADD_ANSWERS = Insert(t.answers)
_SAVE_SERIES = _upsert(t.series)
_SAVE_GROUPS = _upsert(t.groups)
_SAVE_MOVE_DAYS = _upsert(t.move_days)


async def save(connection: Connection, changes: Changes, received: datetime) -> None:
    """Writes what a batch did, a statement per table; `received` is wall time.

    Members who were made for the lock and to whom nothing came are dropped again.
    """
    before, after = changes.before, changes.after
    profiles = [(before.profiles[name], now) for name, _, now in _replaced(before.profiles, after.profiles)]
    rows = _SAVE_MEMBERS.changed((member_rows(was), member_rows(now)) for was, now in profiles)
    await _SAVE_MEMBERS.write(connection, rows)
    touched = {row[1] for row in chain(*rows)}
    for name, upsert, rows_of_record in _SAVE:
        rows = upsert.changed(
            (rows_of_record(now.member_id, key, old) if old else (), rows_of_record(now.member_id, key, new))
            for was, now in profiles
            for key, old, new in _replaced(getattr(was, name), getattr(now, name))
        )
        await upsert.write(connection, rows)
        touched |= {row[1] for row in chain(*rows)}
    gone = {(now.member_id, key) for was, now in profiles for key in was.tags.keys() - now.tags.keys()}
    await _DROP_TAGS.execute_rows(connection, sorted(keyed(gone)))
    await _ADD_ANSWERS.rows(
        connection,
        [
            (bucket(member_id), member_id, request_id, answered.payload_hash, answered.body, received)
            for (member_id, request_id), answered in changes.answers.items()
        ],
    )
    await INBOX.add(connection, changes.events, received)
    touched |= {member_id for member_id, _ in changes.answers} | {key.member_id for key in changes.events}
    await _DROP_MEMBERS.execute_rows(connection, keys(before.made - touched))
    await _save_groups(connection, before, after)


def _replaced(was: Mapping[K, T], now: Mapping[K, T]) -> Iterator[tuple[K, T | None, T]]:
    """What is not the same object any more, by name, with what it was."""
    for key, record in now.items():
        known = was.get(key)
        if record is not known:
            yield key, known, record


async def _save_groups(connection: Connection, before: Seen, after: Seen) -> None:
    series = _SAVE_SERIES.changed(
        (series_rows(name, before.series[name]), series_rows(name, last))
        for name, last in after.series.items()
    )
    await _SAVE_SERIES.write(connection, series)
    groups = _SAVE_GROUPS.changed(
        (group_rows(name, old) if old else (), group_rows(name, new))
        for name, old, new in _replaced(before.groups, after.groups)
    )
    await _SAVE_GROUPS.write(connection, groups)
    moves = _SAVE_MOVE_DAYS.changed(
        ([(day, before.moves[day])], [(day, moves)]) for day, moves in after.moves.items()
    )
    await _SAVE_MOVE_DAYS.write(connection, moves)
