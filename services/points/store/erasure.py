"""Erasing a member."""

from __future__ import annotations

import sqlalchemy as sa

from services.chassis.database import Connection, Statement
from services.chassis.erasure import forget
from services.chassis.ids import bucket
from services.points import tables as t
from services.points.store.boxes import DEAD_LETTERS, INBOX, OUTBOX
from services.points.store.rows import OF_MEMBER

_ERASE_NOTES = Statement(
    sa.delete(t.notes).where(
        t.notes.c.bucket == sa.bindparam("b"), t.notes.c.member_id == sa.bindparam("member")
    )
)
_ERASE_SOURCES = Statement(
    sa.update(t.transactions).where(*OF_MEMBER, t.transactions.c.source.is_not(None)).values(source=None)
)


def _erase_lines() -> Statement:
    """Which lines were refunded tells what was bought; of an erased order their sum is enough."""
    c = t.refunds.c
    each = sa.func.jsonb_each_text(c.lines).table_valued("value")
    sum_ = sa.select(sa.cast(sa.func.sum(sa.cast(each.c.value, sa.BigInteger)), sa.BigInteger))
    return Statement(
        sa.update(t.refunds)
        .where(c.bucket == sa.bindparam("b"), c.member_id == sa.bindparam("member"))
        .where(c.seq.is_not(None), c.lines != sa.literal_column("'{}'::jsonb"))
        .values(amount=c.amount + sum_.scalar_subquery(), lines=sa.literal_column("'{}'::jsonb"))
    )


_ERASE_LINES = _erase_lines()


async def erase(connection: Connection, member_id: str) -> tuple[int, int, int, int]:
    """Removes a locked member's free text, sources, events and dead letters. Returns how many of each."""
    key = {"b": bucket(member_id), "member": member_id}
    notes = await _ERASE_NOTES.execute(connection, **key)
    sources = await _ERASE_SOURCES.execute(connection, **key)
    await _ERASE_LINES.execute(connection, **key)
    events, refused = await forget(connection, member_id, OUTBOX, INBOX, DEAD_LETTERS)
    return notes, sources, events, refused
