"""Reading without a lock: members with what is known of them, groups, and which series have room."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from services.chassis.database import Connection, Row, Statement, rows_of
from services.chassis.ids import bucket
from services.chassis.statements import (
    MEMBER,
    By,
    Gathered,
    Lookup,
    given_members,
    keys,
    of_member,
    one_of,
    unless_null,
)
from services.groups import tables as t
from services.groups.domain.profile import Membership, Profile
from services.groups.domain.seats import Group, GroupStatus, SeriesName
from services.groups.store.rows import (
    to_group,
    to_membership,
    to_order,
    to_profile,
    to_tag,
)

_MOST = sa.bindparam("most", type_=sa.BigInteger)
_ONE: sa.ColumnElement[int] = sa.literal_column("1")

MemberKey = tuple[int, str]
"""Bucket and member: the order of pages over members."""
BEFORE_ALL: MemberKey = (-1, "")
"""Comes before every member."""


def after_member(table: sa.Table) -> sa.ColumnElement[bool]:
    """That a row's member comes after the one given as `after_bucket` and `after_member`."""
    after = sa.tuple_(
        sa.bindparam("after_bucket", type_=sa.SmallInteger), sa.bindparam("after_member", type_=sa.Text)
    )
    return sa.tuple_(table.c.bucket, table.c.member_id) > after


# --- members ------------------------------------------------------------------------------------------


_ALWAYS: sa.ColumnElement[Any] = sa.literal_column("'-infinity'::timestamptz")
RECENT = sa.and_(
    *(t.orders.c[name] == t.members.c[name] for name in MEMBER),
    t.orders.c.paid_time >= sa.func.coalesce(t.members.c.past_until, _ALWAYS),
)
"""That an order is a member's, and that the member's past does not hold it."""


_MEMBERSHIPS, _TAGS, _ORDERS = map(Gathered, (t.memberships, t.tags, t.orders))


def _profiles_statement() -> Statement:
    """One statement, so that all of a member is of one instant."""
    given, mine = given_members()
    m, later = t.memberships.c, t.memberships.alias("later").c
    latest = (
        sa.select(sa.func.max(later.number))
        .where(*(later[name] == m[name] for name in (*MEMBER, "scheme_id")))
        .scalar_subquery()
    )
    memberships = _MEMBERSHIPS.where(mine(t.memberships), m.number == latest)
    tags, orders = _TAGS.where(mine(t.tags)), _ORDERS.where(RECENT)
    return Statement(
        sa.select(t.members, memberships, tags, orders)
        .join_from(given, t.members, mine(t.members))
        .join(memberships, sa.true())
        .join(tags, sa.true())
        .join(orders, sa.true())
    )


_PROFILES = _profiles_statement()


async def profiles(connection: Connection, member_ids: Iterable[str]) -> dict[str, Profile]:
    """Members that are known, with all that is known of them, as of one instant, unlocked.

    Of memberships that ended, of each scheme the latest; of orders those since the past. Never to be saved.
    """
    found: dict[str, Profile] = {}
    for row in await _PROFILES.fetch_rows(connection, keys(member_ids)):
        profile = found[row["member_id"]] = to_profile(row)
        profile.known = True
        for each in _MEMBERSHIPS.rows(row):
            profile.memberships[each["membership_id"]] = to_membership(each)
        profile.tags = {each["key"]: to_tag(each) for each in _TAGS.rows(row)}
        profile.orders = {each["order_id"]: to_order(each) for each in _ORDERS.rows(row)}
    return found


def _between(table: sa.Table) -> tuple[sa.ColumnElement[bool], ...]:
    """That a row's member is one of those who follow one another up to the one given as the last."""
    last = sa.tuple_(
        sa.bindparam("last_bucket", type_=sa.SmallInteger), sa.bindparam("last_member", type_=sa.Text)
    )
    return (after_member(table), sa.tuple_(table.c.bucket, table.c.member_id) <= last)


def _range(table: sa.Table) -> Statement:
    """Rows of such members, in order: by one walk through the key's index."""
    return Statement(sa.select(table).where(*_between(table)).order_by(*table.primary_key.columns))


def _recent_range() -> Statement:
    recent = sa.select(t.orders).where(RECENT).offset(sa.literal_column("0")).lateral("recent")
    return Statement(sa.select(recent).join_from(t.members, recent, sa.true()).where(*_between(t.members)))


_PAGE = Statement(
    sa.select(t.members)
    .where(after_member(t.members))
    .order_by(t.members.c.bucket, t.members.c.member_id)
    .limit(_MOST)
)
_MEMBERSHIP_RANGE, _TAG_RANGE, _ORDER_RANGE = _range(t.memberships), _range(t.tags), _recent_range()


async def profile_page(connection: Connection, after: MemberKey, most: int) -> dict[str, Profile]:
    """As `profiles`, of all members, in the order of their keys; BEFORE_ALL begins.

    It takes a transaction of one instant, so that all of a member is of one.
    """
    first = {"after_bucket": after[0], "after_member": after[1]}
    rows = await _PAGE.fetch(connection, **first, most=most)
    found = {row["member_id"]: to_profile(row) for row in rows}
    if not rows:
        return found
    between = {**first, "last_bucket": rows[-1]["bucket"], "last_member": rows[-1]["member_id"]}

    async def theirs(kept: Statement) -> list[Row]:
        """What lies between, but for that of nobody: the audit's to find, and no reason to stop here."""
        return [row for row in await kept.fetch(connection, **between) if row["member_id"] in found]

    latest: dict[tuple[str, str], Membership] = {}
    for row in await theirs(_MEMBERSHIP_RANGE):
        latest[row["member_id"], row["scheme_id"]] = to_membership(row)
    for (member_id, _), membership in latest.items():
        found[member_id].memberships[membership.membership_id] = membership
    for row in await theirs(_TAG_RANGE):
        found[row["member_id"]].tags[row["key"]] = to_tag(row)
    for row in await theirs(_ORDER_RANGE):
        found[row["member_id"]].orders[row["order_id"]] = to_order(row)
    for profile in found.values():
        profile.known = True
    return found


_MEMBER_PAGE = Statement(
    sa.select(t.members.c.bucket, t.members.c.member_id)
    .where(after_member(t.members))
    .order_by(t.members.c.bucket, t.members.c.member_id)
    .limit(_MOST)
)
_AT = sa.bindparam("at", type_=t.INSTANT)
_ACTIVE = sa.and_(
    t.memberships.c.end_time.is_(None),
    sa.func.coalesce(t.memberships.c.seat_expire_time > _AT, sa.true()),
)
"""That it is so at an instant: a seat whose time is over has lapsed, though nobody gave it up yet."""
_MEMBERSHIP_PAGE = Statement(
    sa.select(t.memberships)
    .where(
        *of_member(t.memberships),
        sa.or_(sa.bindparam("ended", type_=sa.Boolean), _ACTIVE),
        unless_null("before", sa.Text, lambda before: t.memberships.c.membership_id < before),
    )
    .order_by(t.memberships.c.membership_id.desc())
    .limit(_MOST)
)
_ORDER_PAGE = Statement(
    sa.select(t.orders)
    .where(*of_member(t.orders), unless_null("after", sa.Text, lambda after: t.orders.c.order_id > after))
    .order_by(t.orders.c.order_id)
    .limit(_MOST)
)


async def member_page(connection: Connection, after: MemberKey, most: int) -> list[MemberKey]:
    """All members, in the order of their keys; BEFORE_ALL begins."""
    rows = await _MEMBER_PAGE.fetch(connection, after_bucket=after[0], after_member=after[1], most=most)
    return [(row["bucket"], row["member_id"]) for row in rows]


async def membership_page(
    connection: Connection,
    member_id: str,
    ended: bool,
    before: str | None,
    most: int,
    *,
    at: datetime | None = None,
) -> list[Row]:
    """Memberships as `to_membership` reads them, newest first; `ended` means also those.

    With `at` a seat whose time is over by then has ended.
    """
    return await _MEMBERSHIP_PAGE.fetch(
        connection, b=bucket(member_id), member=member_id, ended=ended, before=before, most=most, at=at
    )


async def order_page(connection: Connection, member_id: str, after: str | None, most: int) -> list[Row]:
    """Orders as `to_order` reads them, by `order_id`."""
    return await _ORDER_PAGE.fetch(connection, b=bucket(member_id), member=member_id, after=after, most=most)


# --- groups -------------------------------------------------------------------------------------------

_GROUPS = Lookup(t.groups, named=By(("group_id",)))


_GROUP_FILTERS = ("chat_id", "site_id", "scheme_id", "status")


def _group_page(by: str | None) -> Statement:
    """Groups by what finds them, filtered by the rest: one plan for every filter could use no index."""
    g = t.groups.c
    over = sa.case((g.close_time <= _AT, sa.literal_column(f"'{GroupStatus.DISSOLVED}'")), else_=g.status)
    columns = {name: over if name == "status" else g[name] for name in _GROUP_FILTERS}
    filters = [unless_null(name, sa.Text, columns[name].__eq__) for name in _GROUP_FILTERS if name != by]
    if by is not None:
        # The second half is what the index on it is limited to.
        filters += [g[by] == sa.bindparam(by), g[by] != sa.literal_column("''")]
    after = unless_null("after", sa.Text, g.group_id.__gt__)
    return Statement(sa.select(t.groups).where(*filters, after).order_by(g.group_id).limit(_MOST))


_GROUP_PAGES = {by: _group_page(by) for by in (*_GROUP_FILTERS[:3], None)}
_GROUPS_OF_SITE = Statement(
    sa.select(t.groups)
    .where(t.groups.c.site_id == sa.bindparam("site"), t.groups.c.site_id != sa.literal_column("''"))
    .order_by(t.groups.c.group_id)
)
_GROUP_MEMBERS = Statement(
    sa.select(t.memberships)
    .where(
        t.memberships.c.group_id == sa.bindparam("group"),
        _ACTIVE,
        after_member(t.memberships),
    )
    .order_by(t.memberships.c.bucket, t.memberships.c.member_id)
    .limit(_MOST)
)


_LOCK_CHAT = Statement(
    sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(sa.bindparam("chat", type_=sa.Text), 0)))
)
_OF_CHAT = Statement(
    sa.select(t.groups.c.group_id).where(
        t.groups.c.chat_id == sa.bindparam("chat"), t.groups.c.chat_id != sa.literal_column("''")
    )
)


async def lock_chat(connection: Connection, chat_id: str) -> str | None:
    """The group that a chat is; nobody else attaches it until commit."""
    await _LOCK_CHAT.fetch(connection, chat=chat_id)
    found: str | None = await _OF_CHAT.fetch_value(connection, chat=chat_id)
    return found


_LIVING = one_of(t.groups.c.status, GroupStatus.OPEN, GroupStatus.FULL)
_WITHOUT_CHAT = Statement(
    sa.select(t.groups)
    .where(t.groups.c.name == sa.bindparam("name"), t.groups.c.chat_id == sa.literal_column("''"), _LIVING)
    .order_by(t.groups.c.group_id)
    .limit(_MOST)
)
_WITHOUT_LINK = Statement(
    sa.select(t.groups)
    .where(
        t.groups.c.chat_id != sa.literal_column("''"),
        t.groups.c.entry_link == sa.literal_column("''"),
        t.groups.c.group_id > sa.bindparam("after", type_=sa.Text),
        _LIVING,
    )
    .order_by(t.groups.c.group_id)
    .limit(_MOST)
)


async def group_of_chat(connection: Connection, chat_id: str) -> Group | None:
    """The group that a chat is, unlocked."""
    rows = await group_page(connection, chat_id=chat_id, after=None, most=1)
    return to_group(rows[0]) if rows else None


async def groups_without_chat(connection: Connection, name: str, most: int) -> list[Group]:
    """Groups of a name that take members and whose chat is not known, oldest first."""
    return [to_group(row) for row in await _WITHOUT_CHAT.fetch(connection, name=name, most=most)]


async def groups_without_link(connection: Connection, after: str, most: int) -> list[Group]:
    """Groups whose chat is known but not where it is entered, by `group_id`; `""` begins."""
    return [to_group(row) for row in await _WITHOUT_LINK.fetch(connection, after=after, most=most)]


async def groups(connection: Connection, group_ids: Collection[str]) -> dict[str, Group]:
    """Groups by id, as far as there are such."""
    rows = await _GROUPS.fetch(connection, named=[(group_id,) for group_id in group_ids])
    return {row["group_id"]: to_group(row) for row in rows}


async def group_page(
    connection: Connection,
    *,
    chat_id: str | None = None,
    site_id: str | None = None,
    scheme_id: str | None = None,
    status: str | None = None,
    after: str | None,
    most: int,
    at: datetime | None = None,
) -> list[Row]:
    """Groups as `to_group` reads them, by `group_id`; with `at` one whose time is over by then is no more."""
    which = dict(zip(_GROUP_FILTERS, (chat_id, site_id, scheme_id, status), strict=True))
    by = next((name for name in _GROUP_PAGES if name is not None and which[name] is not None), None)
    return await _GROUP_PAGES[by].fetch(connection, **which, after=after, most=most, at=at)


async def groups_of_site(connection: Connection, site_id: str) -> list[Group]:
    """All groups that a site has had, oldest first."""
    return [to_group(row) for row in await _GROUPS_OF_SITE.fetch(connection, site=site_id)]


async def group_members(
    connection: Connection, group_id: str, after: MemberKey, most: int, at: datetime | None = None
) -> list[Row]:
    """The active memberships of a group as `to_membership` reads them, with `bucket` and `member_id`.

    With `at` a seat whose time is over by then is none.
    """
    return await _GROUP_MEMBERS.fetch(
        connection, group=group_id, after_bucket=after[0], after_member=after[1], most=most, at=at
    )


# --- which series have room ---------------------------------------------------------------------------


def _rooms_statement() -> Statement:
    """Of each series its first group with a seat; without one, whether a group of it lives."""
    given = rows_of(scheme_id=sa.Text, anchor=sa.Text)
    g, living = t.groups.c, t.groups.alias("living").c
    mine = (g.scheme_id == given.c.scheme_id, g.anchor == given.c.anchor)
    first = (
        sa.select(t.groups)
        .where(*mine, one_of(g.status, GroupStatus.OPEN))
        .order_by(g.seq)
        .limit(_ONE)
        .lateral("first")
    )
    full = (
        sa.select(_ONE)
        .where(
            living.scheme_id == given.c.scheme_id,
            living.anchor == given.c.anchor,
            one_of(living.status, GroupStatus.FULL),
        )
        .exists()
    )
    names = (given.c.scheme_id.label("of_scheme"), given.c.anchor.label("of_anchor"))
    return Statement(
        sa.select(*names, first)
        .join_from(given, first, sa.true(), isouter=True)
        .where(sa.or_(first.c.group_id.is_not(None), ~full))
    )


_ROOMS = _rooms_statement()


async def rooms(connection: Connection, names: Collection[SeriesName]) -> dict[SeriesName, Group | None]:
    """Of series that are not full the first group with a seat, None where no group lives; full ones lack."""
    rows = await _ROOMS.fetch_rows(connection, sorted(names))
    return {
        (row["of_scheme"], row["of_anchor"]): None if row["group_id"] is None else to_group(row)
        for row in rows
    }
