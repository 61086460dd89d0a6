"""Tables, and the constraints that guard the rules even against our own code.

Every key of a member table begins with `bucket` (crc32 of the member, modulo 1,024) and `member_id`: the
unit of placement when the members outgrow one machine. Members meet in the groups, whose series are locked
after them. The columns of a key come first. Texts that are not there are empty, everything else is null then.
"""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from services.chassis import columns, tables
from services.chassis.answers import answers_table

metadata = columns.schema()

INSTANT = columns.INSTANT


def _degrees(name: str) -> sa.Column[float]:
    return sa.Column(name, sa.Double, nullable=False)


def _computed(name: str, condition: str) -> sa.Column[bool]:
    """What a partial index asks: as a column of its own, the index is written only where its value changes.

    The condition is written as PostgreSQL writes it, which is what the migrations are compared with.
    """
    return sa.Column(name, sa.Boolean, sa.Computed(condition, persisted=True))


# --- members ------------------------------------------------------------------------------------------

# The one row of a member that a write locks.
members = sa.Table(
    "members",
    metadata,
    *columns.member_key(),
    sa.Column("version", sa.BigInteger, nullable=False, server_default="0"),
    # What other services told: {name: [value, [epoch, version]]}, of the event that told it last; null for a
    # value that holds no longer.
    sa.Column("facts", JSONB, nullable=False, server_default="{}"),
    sa.Column("left_groups", JSONB, nullable=False, server_default="{}"),  # {group_id: when, in ISO format}
    # Orders that were paid before `past_until`, added up: {stores: {store_id: [orders, first, last]}, city:
    # [when, order_id, city]}, times in ISO format.
    sa.Column("past", JSONB, nullable=False, server_default="{}"),
    columns.instant("past_until", nullable=True),
    columns.instant("offer_time", nullable=True),
    columns.instant("evaluate_time", nullable=True),
    columns.instant("next_due_time", nullable=True),
    sa.CheckConstraint("version >= 0", name="members_version"),
    sa.CheckConstraint(
        "evaluate_time IS NULL OR (next_due_time IS NOT NULL AND next_due_time <= evaluate_time)",
        name="members_due_when_evaluated",
    ),
    postgresql_with={"fillfactor": "70"},
)
sa.Index("members_due", members.c.next_due_time, postgresql_where=members.c.next_due_time.is_not(None))

# A member's stays in schemes, numbered in each. It is active until it ends.
memberships = sa.Table(
    "memberships",
    metadata,
    *columns.member_key(),
    columns.key("scheme_id"),
    columns.numbered("number"),
    columns.text("membership_id"),
    columns.text("group_id"),
    columns.text("anchor"),  # of the series that its group is of
    columns.text("site_id"),
    columns.text("status"),
    columns.text("basis"),
    columns.text("entry_source"),
    columns.text("cell"),
    columns.number("distance_m"),
    columns.instant("assign_time"),
    columns.instant("seat_expire_time", nullable=True),
    columns.instant("join_time", nullable=True),
    columns.instant("arrive_time", nullable=True),
    columns.instant("end_time", nullable=True),
    sa.Column("ending", sa.Text),
    columns.text("lost_condition"),
    columns.text("reward_id"),
    columns.one_of("memberships", "status", "ASSIGNED", "JOINED", "LEFT", "REMOVED", "LAPSED"),
    columns.one_of(
        *("memberships", "basis", "CHOSEN", "EXACT", "CITY", "HOME_SITE", "DEFAULT", "SEGMENT", "INVITER"),
        "JOINED",
    ),
    columns.one_of(
        *("memberships", "ending", "LEFT", "REMOVED", "THRESHOLD_LOST", "GROUP_DISSOLVED", "SITE_CLOSED"),
        *("SEAT_LAPSED", "RECONCILED"),
    ),
    sa.CheckConstraint("number > 0", name="memberships_number"),
    sa.CheckConstraint("distance_m >= 0", name="memberships_distance"),
    sa.CheckConstraint(
        "(end_time IS NULL) = (status IN ('ASSIGNED', 'JOINED'))", name="memberships_active_until_the_end"
    ),
    sa.CheckConstraint(
        "CASE status WHEN 'ASSIGNED' THEN seat_expire_time IS NOT NULL"
        " WHEN 'JOINED' THEN seat_expire_time IS NULL ELSE true END",
        name="memberships_seat_kept_until_joined",
    ),
    sa.CheckConstraint("status <> 'JOINED' OR arrive_time IS NOT NULL", name="memberships_joined"),
    sa.CheckConstraint("arrive_time IS NULL OR join_time IS NOT NULL", name="memberships_arrived"),
    # A seat that nobody came to lapses without a word.
    sa.CheckConstraint(
        "CASE WHEN end_time IS NULL THEN ending IS NULL ELSE ending IS NOT NULL OR status = 'LAPSED' END",
        name="memberships_ended",
    ),
    postgresql_with={"fillfactor": "85"},
)
sa.Index(
    "memberships_one_active",
    memberships.c.bucket,
    memberships.c.member_id,
    memberships.c.scheme_id,
    unique=True,
    postgresql_where=memberships.c.end_time.is_(None),
)
sa.Index(
    "memberships_of_group",
    memberships.c.group_id,
    memberships.c.bucket,
    memberships.c.member_id,
    postgresql_where=memberships.c.end_time.is_(None),
)

tags = sa.Table(
    "tags",
    metadata,
    *columns.member_key(),
    columns.key("key"),
    columns.text("value"),
    columns.text("source"),
    columns.instant("expire_time", nullable=True),
    columns.instant("set_time"),
    sa.CheckConstraint("value <> ''", name="tags_value"),
    postgresql_with={"fillfactor": "85"},
)

# Orders as they were told, with their refunds, whichever came first: facts are computed from them.
orders = sa.Table(
    "orders",
    metadata,
    *columns.member_key(),
    columns.key("order_id"),
    columns.text("store_id"),
    columns.text("city"),
    columns.instant("paid_time", nullable=True),
    columns.number("amount_minor"),
    sa.Column("refunds", JSONB, nullable=False),  # {refund_id: minor units; -1 for all that is left}
    sa.CheckConstraint("amount_minor >= 0", name="orders_amount"),
    sa.CheckConstraint(
        "paid_time IS NOT NULL OR (amount_minor = 0 AND store_id = '' AND city = '')", name="orders_told"
    ),
)
# Facts are computed from those since the member's past.
sa.Index("orders_by_time", orders.c.bucket, orders.c.member_id, orders.c.paid_time)

answers = answers_table(metadata)

# --- groups -------------------------------------------------------------------------------------------

# The groups of a scheme at one anchor: the row that is locked by whoever changes one of them, or adds one.
series = sa.Table(
    "series",
    metadata,
    columns.key("scheme_id"),
    columns.key("anchor"),
    sa.Column("last_seq", sa.BigInteger, nullable=False, server_default="0"),
    columns.not_negative("series", "last_seq"),
    postgresql_with={"fillfactor": "70"},
)

groups = sa.Table(
    "groups",
    metadata,
    columns.key("group_id"),
    columns.text("scheme_id"),
    columns.number("scheme_version"),
    columns.text("anchor"),
    columns.number("seq"),
    columns.text("name"),
    columns.number("capacity"),
    columns.number("room"),
    columns.number("seats_taken"),
    columns.number("overbooked"),
    columns.text("status"),
    columns.text("site_id"),
    columns.text("chat_id"),
    columns.text("entry_link"),
    columns.instant("open_time"),
    columns.instant("close_time", nullable=True),
    columns.instant("sale_time", nullable=True),
    columns.text("previous_group_id"),
    columns.instant("next_occasion_time", nullable=True),
    columns.number("version"),
    # Somebody is in it who is to be moved.
    _computed(
        "leaving", "(status = 'CLOSED'::text OR status = 'DISSOLVED'::text) AND seats_taken + overbooked > 0"
    ),
    # The platform takes nobody more, so that a seat that is kept is worth nothing.
    _computed("crowded", "overbooked > 0 AND status = 'FULL'::text AND seats_taken + overbooked >= capacity"),
    sa.UniqueConstraint("scheme_id", "anchor", "seq", name="groups_seq_once"),
    columns.one_of("groups", "status", "OPEN", "FULL", "CLOSED", "DISSOLVED"),
    sa.CheckConstraint("seq > 0 AND scheme_version > 0", name="groups_counted"),
    sa.CheckConstraint("room > 0 AND room <= capacity", name="groups_room"),
    sa.CheckConstraint("seats_taken >= 0 AND seats_taken <= room", name="groups_seats"),
    sa.CheckConstraint("overbooked >= 0", name="groups_overbooked"),
    sa.CheckConstraint(
        "CASE status WHEN 'OPEN' THEN overbooked = 0 AND seats_taken < room"
        " WHEN 'FULL' THEN overbooked > 0 OR seats_taken = room ELSE true END",
        name="groups_full_without_a_seat",
    ),
    sa.CheckConstraint("version >= 0", name="groups_version"),
    postgresql_with={"fillfactor": "50"},
)
sa.Index(
    "groups_open",
    groups.c.scheme_id,
    groups.c.anchor,
    groups.c.seq,
    postgresql_where=groups.c.status == "OPEN",
)
sa.Index("groups_of_scheme", groups.c.scheme_id, groups.c.group_id)
sa.Index("groups_of_site", groups.c.site_id, groups.c.group_id, postgresql_where=groups.c.site_id != "")
sa.Index("groups_chat_once", groups.c.chat_id, unique=True, postgresql_where=groups.c.chat_id != "")
sa.Index("groups_without_chat", groups.c.name, postgresql_where=groups.c.chat_id == "")
sa.Index(
    "groups_without_link",
    groups.c.group_id,
    postgresql_where=sa.and_(groups.c.chat_id != "", groups.c.entry_link == ""),
)
sa.Index("groups_leaving", groups.c.group_id, postgresql_where=groups.c.leaving)
sa.Index("groups_crowded", groups.c.group_id, postgresql_where=groups.c.crowded)
sa.Index(
    "groups_closing",
    groups.c.close_time,
    postgresql_where=sa.and_(groups.c.close_time.is_not(None), groups.c.status != "DISSOLVED"),
)
sa.Index(
    "groups_announcing",
    groups.c.next_occasion_time,
    postgresql_where=groups.c.next_occasion_time.is_not(None),
)

# What was announced in a group: each occasion once.
occasions = sa.Table(
    "occasions",
    metadata,
    columns.key("group_id"),
    columns.key("occasion_id"),
    columns.instant("due_time"),
)

# When a group was moved out: the platform allows it so many times.
relocations = sa.Table(
    "relocations", metadata, columns.key("group_id"), sa.Column("move_time", INSTANT, primary_key=True)
)

# Members that were moved out in a local day: the platform allows so many.
move_days = sa.Table(
    "move_days",
    metadata,
    sa.Column("day", sa.Date, primary_key=True),
    sa.Column("moves", sa.BigInteger, nullable=False, server_default="0"),
    columns.not_negative("move_days", "moves"),
)

# --- places and terms ---------------------------------------------------------------------------------

sites = sa.Table(
    "sites",
    metadata,
    columns.key("site_id"),
    columns.text("name"),
    columns.text("city"),
    _degrees("latitude"),  # of WGS84
    _degrees("longitude"),
    columns.number("priority"),
    columns.flag("open"),
    columns.instant("update_time"),
    columns.text("author"),
    sa.CheckConstraint(
        "latitude BETWEEN -90 AND 90 AND longitude BETWEEN -180 AND 180", name="sites_on_the_globe"
    ),
)

# Rises with every change of a site, so that whoever keeps them knows that they changed.
geography = sa.Table(
    "geography",
    metadata,
    sa.Column("only_row", sa.Boolean, primary_key=True, server_default=sa.true()),
    sa.Column("revision", sa.BigInteger, nullable=False, server_default="1"),
    sa.CheckConstraint("only_row", name="geography_one_row"),
)

# How groups are formed, version by version: facts. `body` is the message; kind and withdrawn stand in it too.
schemes = sa.Table(
    "schemes",
    metadata,
    columns.key("scheme_id"),
    columns.numbered("version"),
    columns.text("kind"),
    columns.flag("withdrawn"),
    columns.text("author"),
    columns.instant("create_time"),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.CheckConstraint("version > 0", name="schemes_version"),
    columns.one_of("schemes", "kind", "BY_LOCATION", "BY_TAG", "INVITE", "FLASH"),
)

programmes = sa.Table(
    "programmes",
    metadata,
    columns.numbered("version"),
    columns.text("author"),
    columns.instant("create_time"),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.CheckConstraint("version > 0", name="programmes_version"),
)

# Jobs over all members: what changed, and how far it has been done.
evaluations = sa.Table(
    "evaluations",
    metadata,
    columns.key("kind"),
    columns.key("subject_id"),  # the scheme; empty for the programme
    columns.number("version"),  # of it
    sa.Column("after_bucket", sa.SmallInteger, nullable=False),
    columns.text("after_member"),
    columns.number("done"),  # members
    columns.instant("start_time"),
    columns.instant("end_time", nullable=True),
    columns.one_of("evaluations", "kind", "SCHEME", "PROGRAMME"),
    columns.not_negative("evaluations", "done"),
    sa.CheckConstraint("version > 0", name="evaluations_version"),
)
sa.Index("evaluations_open", evaluations.c.start_time, postgresql_where=evaluations.c.end_time.is_(None))

meta, requests, outbox, stream_erasures, inbox, dead_letters, jobs = tables.common(metadata)

# What may change of a row once it is written; the rest is fact.
CHANGING: Mapping[str, tuple[str, ...]] = {
    "members": (
        *("version", "facts", "left_groups", "past", "past_until", "offer_time", "evaluate_time"),
        "next_due_time",
    ),
    "memberships": (
        *("group_id", "anchor", "site_id", "status", "basis", "entry_source", "cell", "distance_m"),
        *("assign_time", "seat_expire_time", "join_time", "arrive_time", "end_time", "ending"),
        *("lost_condition", "reward_id"),
    ),
    "tags": ("value", "source", "expire_time", "set_time"),
    "orders": ("store_id", "city", "paid_time", "amount_minor", "refunds"),
    "answers": ("body",),
    "series": ("last_seq",),
    "groups": (
        *("seats_taken", "overbooked", "status", "chat_id", "entry_link", "close_time"),
        *("next_occasion_time", "version"),
    ),
    "occasions": (),
    "relocations": (),
    "move_days": ("moves",),
    "sites": ("name", "city", "latitude", "longitude", "priority", "open", "update_time", "author"),
    "geography": ("revision",),
    "schemes": (),
    "programmes": (),
    "evaluations": ("version", "after_bucket", "after_member", "done", "start_time", "end_time"),
}
# Members to whom nothing came are dropped again, tags are taken away, and orders go with who is erased.
GOING = ("members", "tags", "orders")


def grants(role: str) -> list[str]:
    """What the service's role may do: everything on the chassis's tables, and no change of a fact."""
    return [*tables.grants(role, CHANGING, GOING), f"REVOKE INSERT ON geography FROM {role}"]
