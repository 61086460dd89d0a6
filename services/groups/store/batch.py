"""Reading what a batch of commands sees under the locks, and writing what it did: a statement per table."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import distinct_on

from services.chassis.answers import Named
from services.chassis.database import Connection, Statement, rows_of
from services.chassis.members import Members
from services.chassis.statements import (
    MEMBER,
    By,
    Lockable,
    Lookup,
    Upsert,
    dropping,
    given_members,
    keyed,
    keys,
    one_of,
    replaced,
)
from services.groups import tables as t
from services.groups.domain.seats import GroupStatus
from services.groups.store.boxes import ANSWERS
from services.groups.store.reads import RECENT
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
from services.groups.store.wanted import Changes, Seen, Wanted, WantedSeries

SERIES = ("scheme_id", "anchor")

# --- lock ---------------------------------------------------------------------------------------------


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


def _recent_orders() -> Statement:
    given, mine = given_members()
    recent = sa.select(t.orders).where(RECENT).offset(sa.literal_column("0")).lateral("recent")
    members = sa.join(given, t.members, mine(t.members))
    return Statement(sa.select(recent).join_from(members, recent, sa.true()))


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


# A profile, and what it holds, by the name of the collection.
_MEMBERS = Members(
    t.members,
    member_rows,
    (
        ("memberships", t.memberships, membership_rows),
        ("tags", t.tags, tag_rows),
        ("orders", t.orders, order_rows),
    ),
    t.CHANGING,
)
_LATEST = _latest_memberships()
_TAGS = Lookup(t.tags, all=By(MEMBER))
_ORDERS = Lookup(t.orders, named=By((*MEMBER, "order_id")), all=By(MEMBER))
_RECENT_ORDERS = _recent_orders()
_SERIES = Lockable(t.series)
_MOVE_DAYS = Lockable(t.move_days)
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
    seen.done = await ANSWERS.read(connection, wanted.requests, wanted.events)
    old = seen.profiles.keys() - seen.made
    for row in await _LATEST.fetch_rows(connection, keys(old)):
        membership = to_membership(row)
        seen.profiles[row["member_id"]].memberships[membership.membership_id] = membership
    facts_of = keys(old & {name for name, profile in seen.profiles.items() if profile.known})
    for row in await _TAGS.fetch(connection, all=facts_of):
        seen.profiles[row["member_id"]].tags[row["key"]] = to_tag(row)
    for row in await _RECENT_ORDERS.fetch_rows(connection, facts_of):
        seen.profiles[row["member_id"]].orders[row["order_id"]] = to_order(row)
    await _see_named_orders(connection, {named for named in wanted.orders if named[0] in old}, seen)
    return seen


async def _see_named_orders(connection: Connection, named: Collection[Named], seen: Seen) -> None:
    """Shows orders by name; one that counts as past changes it, for which it takes all of the member's."""
    past = set()
    for row in await _ORDERS.fetch(connection, named=keyed(named)):
        profile, order = seen.profiles[row["member_id"]], to_order(row)
        profile.orders[order.order_id] = order
        if order.purchase is not None and profile.past.holds(order.purchase):
            past.add(profile.member_id)
    for row in await _ORDERS.fetch(connection, all=keys(past)):
        seen.profiles[row["member_id"]].orders[row["order_id"]] = to_order(row)
    for member_id in past:
        seen.profiles[member_id].whole = True


async def _lock_members(connection: Connection, wanted: Wanted, seen: Seen) -> None:
    rows, seen.made = await _MEMBERS.lock(connection, wanted.members)
    seen.profiles = {row["member_id"]: to_profile(row) for row in rows}
    known = wanted.facts_of | seen.made
    for name, profile in seen.profiles.items():
        evaluated = profile.evaluate_time is not None and profile.evaluate_time <= wanted.at
        profile.known = evaluated or name in known


async def lock_series(connection: Connection, wanted: WantedSeries, seen: Seen) -> None:
    """Locks the series in order, then the day's moves, and adds what is there to what the batch sees.

    Series are made if they are not there. It comes after `lock`, once in a transaction.
    """
    rows, _ = await _SERIES.lock(connection, sorted(wanted.seats))
    seen.series = {(row["scheme_id"], row["anchor"]): row["last_seq"] for row in rows}
    last = [(*name, seq) for name, seq in seen.series.items() if seq]
    named, sites = [(name,) for name in wanted.groups], [(name,) for name in wanted.sites]
    groups = await _GROUPS.fetch(connection, named=named, last=last, site=sites)
    seats = [(*name, wanted.seats[name]) for name, seq in seen.series.items() if seq and wanted.seats[name]]
    groups += await _WITH_SEATS.fetch_rows(connection, seats)
    seen.groups = {row["group_id"]: to_group(row) for row in groups}
    if wanted.moves_on is not None:
        rows, _ = await _MOVE_DAYS.lock(connection, [(wanted.moves_on,)])
        seen.moves = {row["day"]: row["moves"] for row in rows}


# --- save ---------------------------------------------------------------------------------------------


def _upsert(table: sa.Table) -> Upsert:
    return Upsert(table, t.CHANGING[table.name])


_DROP_TAGS = dropping(t.tags)
_SAVE_SERIES = _upsert(t.series)
_SAVE_GROUPS = _upsert(t.groups)
_SAVE_MOVE_DAYS = _upsert(t.move_days)


async def save(connection: Connection, changes: Changes, received: datetime) -> None:
    """Writes what a batch did, a statement per table; `received` is wall time.

    Members who were made for the lock and to whom nothing came are dropped again.
    """
    before, after = changes.before, changes.after
    touched = await _MEMBERS.save(connection, before.profiles, after.profiles)
    profiles = ((before.profiles[name], now) for name, now in after.profiles.items())
    gone = {(now.member_id, key) for was, now in profiles for key in was.tags.keys() - now.tags.keys()}
    await _DROP_TAGS.execute_rows(connection, sorted(keyed(gone)))
    touched |= await ANSWERS.write(connection, after.done, received)
    await _MEMBERS.drop(connection, before.made - touched)
    await _save_groups(connection, before, after)


async def _save_groups(connection: Connection, before: Seen, after: Seen) -> None:
    series = _SAVE_SERIES.changed(
        (series_rows(name, before.series[name]), series_rows(name, last))
        for name, last in after.series.items()
    )
    await _SAVE_SERIES.write(connection, series)
    groups = _SAVE_GROUPS.changed(
        (group_rows(name, old) if old else (), group_rows(name, new))
        for name, old, new in replaced(before.groups, after.groups)
    )
    await _SAVE_GROUPS.write(connection, groups)
    moves = _SAVE_MOVE_DAYS.changed(
        ([(day, before.moves[day])], [(day, moves)]) for day, moves in after.moves.items()
    )
    await _SAVE_MOVE_DAYS.write(connection, moves)
