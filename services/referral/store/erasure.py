"""Erasing a member, and what is kept no longer."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa

from services.chassis.database import Connection, Statement, rows_of
from services.chassis.erasure import forget
from services.chassis.ids import bucket
from services.chassis.statements import MEMBER, Lockable, keys, of_member
from services.referral import tables as t
from services.referral.domain.profile import Profile
from services.referral.store.boxes import ANSWERS, DEAD_LETTERS, INBOX, OUTBOX
from services.referral.store.rows import to_profile

_EMPTY: sa.ColumnElement[str] = sa.literal_column("''")
_NOTHING: sa.ColumnElement[Any] = sa.literal_column("'{}'::jsonb")
_TOLD = Statement(sa.select(t.members).where(*of_member(t.members)))
_ERASE_TOLD = Statement(sa.update(t.members).where(*of_member(t.members)).values(told=_NOTHING))
_ERASE_SIGNALS = Statement(sa.delete(t.signals).where(t.signals.c.member_id == sa.bindparam("member")))
_ERASE_FACTS = Statement(
    sa.update(t.facts)
    .where(*of_member(t.facts), t.facts.c.attributes.is_not(None))
    .values(attributes=sa.null())
)
_ERASE_NAMES = Statement(sa.update(t.invites).where(*of_member(t.invites)).values(masked_name=_EMPTY))
_ERASE_NOTES = Statement(sa.update(t.reviews).where(*of_member(t.reviews)).values(note=_EMPTY))
_ERASE_REASONS = Statement(sa.update(t.blocks).where(*of_member(t.blocks)).values(reason=_EMPTY))


class Erased(NamedTuple):
    """How much of what was removed."""

    signals: int
    facts: int
    """Whose details were removed."""
    told: int
    events: int
    refused: int
    """Events that were dead letters."""


async def erase(connection: Connection, member_id: str) -> Erased:
    """Removes a locked member's signals, names, what was told of it, first answers, events and dead letters.

    Of facts the details go, of reviews and blocks what operators wrote; attributions and rewards stay. What
    was asked before is still known by its request_id, but its answer is not.
    """
    key = {"b": bucket(member_id), "member": member_id}
    row = await _TOLD.fetch_one(connection, **key)
    told = Profile(member_id) if row is None else to_profile(row)
    await _ERASE_TOLD.execute(connection, **key)
    signals = await _ERASE_SIGNALS.execute(connection, member=member_id)
    facts = await _ERASE_FACTS.execute(connection, **key)
    for statement in (_ERASE_NAMES, _ERASE_NOTES, _ERASE_REASONS):
        await statement.execute(connection, **key)
    await ANSWERS.erase(connection, member_id)
    events, refused = await forget(connection, member_id, OUTBOX, INBOX, DEAD_LETTERS)
    return Erased(signals, facts, len(told.told), events, refused)


# --- facts of members whom nobody brought -------------------------------------------------------------

_OLD = Statement(
    sa.select(t.facts.c.member_id, t.facts.c.kind, t.facts.c.reference_id)
    .where(
        sa.not_(t.facts.c.kept),
        t.facts.c.receive_time < sa.bindparam("before", type_=sa.DateTime(timezone=True)),
    )
    .order_by(t.facts.c.receive_time)
    .limit(sa.bindparam("most", type_=sa.BigInteger))
)
_MEMBERS = Lockable(t.members)


def _given_facts() -> tuple[sa.TableValuedAlias, sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    """Facts given by their keys, what finds them, and that their member was brought."""
    names = (*MEMBER, "kind", "reference_id")
    given = rows_of(**{name: t.facts.c[name].type for name in names})
    brought = sa.select(t.attributions.c.member_id).where(
        *(t.attributions.c[name] == t.facts.c[name] for name in MEMBER)
    )
    return given, sa.and_(*(t.facts.c[name] == given.c[name] for name in names)), brought.exists()


def _drop_statements() -> tuple[Statement, Statement]:
    _, found, brought = _given_facts()
    return (
        Statement(sa.delete(t.facts).where(found, ~brought)),
        Statement(sa.update(t.facts).where(found, brought).values(kept=sa.true())),
    )


_DROP, _KEEP = _drop_statements()


async def drop_early_facts(connection: Connection, before: datetime, most: int) -> int:
    """Drops what members did whom nobody brought since, told earlier in wall time; returns how much it saw.

    Facts of members who were brought are seen once: they stay.
    """
    old = await _OLD.fetch(connection, before=before, most=most)
    if old:
        # Whoever binds one of them meanwhile has it locked, and has seen what it did.
        await _MEMBERS.lock(connection, keys({row["member_id"] for row in old}))
        facts = sorted((bucket(row["member_id"]), *row) for row in old)
        await _DROP.execute_rows(connection, facts)
        await _KEEP.execute_rows(connection, facts)
    return len(old)
