"""Erasing a member."""

from __future__ import annotations

from typing import Any, NamedTuple

import sqlalchemy as sa

from services.chassis.database import Connection, Statement
from services.chassis.erasure import forget
from services.chassis.ids import bucket
from services.chassis.statements import of_member
from services.groups import tables as t
from services.groups.domain.profile import Profile
from services.groups.store.boxes import ANSWERS, DEAD_LETTERS, INBOX, OUTBOX
from services.groups.store.rows import to_profile

_EMPTY: sa.ColumnElement[str] = sa.literal_column("''")
_NONE: sa.ColumnElement[Any] = sa.literal_column("'{}'::jsonb")
_TOLD = Statement(sa.select(t.members).where(*of_member(t.members)))
_ERASE_TOLD = Statement(
    sa.update(t.members)
    .where(*of_member(t.members))
    .values(facts=_NONE, past=_NONE, past_until=sa.null(), offer_time=sa.null())
)
_ERASE_TAGS = Statement(sa.delete(t.tags).where(*of_member(t.tags)))
_ERASE_ORDERS = Statement(sa.delete(t.orders).where(*of_member(t.orders)))
_CELLS = Statement(
    sa.select(sa.func.count()).where(*of_member(t.memberships), t.memberships.c.cell != _EMPTY)
)
_ERASE_PLACES = Statement(
    sa.update(t.memberships)
    .where(*of_member(t.memberships))
    .where(sa.or_(t.memberships.c.cell != _EMPTY, t.memberships.c.entry_source != _EMPTY))
    .values(cell=_EMPTY, distance_m=sa.literal_column("0"), entry_source=_EMPTY)
)


class Erased(NamedTuple):
    """How much of what was removed."""

    tags: int
    orders: int
    facts: int
    cells: int
    events: int
    refused: int
    """Events that were dead letters."""


async def erase(connection: Connection, member_id: str) -> Erased:
    """Removes a locked member's tags, orders, facts, offers, places, first answers, events and dead letters.

    Memberships stay, for their groups count them. What was asked before is still known by its request_id,
    but its answer is not.
    """
    key = {"b": bucket(member_id), "member": member_id}
    row = await _TOLD.fetch_one(connection, **key)
    told = Profile(member_id) if row is None else to_profile(row)
    await _ERASE_TOLD.execute(connection, **key)
    tags = await _ERASE_TAGS.execute(connection, **key)
    orders = await _ERASE_ORDERS.execute(connection, **key)
    cells = await _CELLS.fetch_value(connection, **key)
    await _ERASE_PLACES.execute(connection, **key)
    await ANSWERS.erase(connection, member_id)
    events, refused = await forget(connection, member_id, OUTBOX, INBOX, DEAD_LETTERS)
    return Erased(tags, orders, len(told.facts), cells, events, refused)
