"""Erasing a member."""

from __future__ import annotations

from typing import Any, NamedTuple

import sqlalchemy as sa

from services.cards import tables as t
from services.cards.domain.wallet import Wallet
from services.cards.store.boxes import INBOX, OUTBOX
from services.cards.store.rows import to_wallet
from services.chassis.database import Connection, Statement
from services.chassis.ids import bucket
from services.chassis.statements import of_member

_NOTHING: sa.ColumnElement[bytes] = sa.literal_column("''::bytea")
_NO_FACTS: sa.ColumnElement[Any] = sa.literal_column("'{}'::jsonb")
_PREFIX = sa.bindparam("prefix", type_=sa.LargeBinary)
_ERASE_BASKETS = Statement(
    sa.update(t.baskets).where(*of_member(t.baskets), t.baskets.c.body != _NOTHING).values(body=_NOTHING)
)
_ERASE_ANSWERS = Statement(
    sa.update(t.answers).where(*of_member(t.answers), t.answers.c.body.is_not(None)).values(body=None)
)
_TOLD = Statement(sa.select(t.members).where(*of_member(t.members)))
_ERASE_FACTS = Statement(
    sa.update(t.members).where(*of_member(t.members)).values(facts=_NO_FACTS, tier=sa.literal_column("''"))
)
# Events that were refused have no effect to find them by; but each begins with its member, field 1.
_ERASE_REFUSED = Statement(
    sa.delete(t.dead_letters)
    .where(sa.func.substr(t.dead_letters.c.body, 1, sa.func.length(_PREFIX)) == _PREFIX)
    .returning(t.dead_letters.c.stream, t.dead_letters.c.stream_seq, t.dead_letters.c.event_id)
)


class Erased(NamedTuple):
    """How much of what was removed."""

    baskets: int
    facts: int
    events: int
    refused: int
    """Events that were dead letters."""


async def erase(connection: Connection, member_id: str) -> Erased:
    """Removes a locked member's baskets, first answers, facts, events and dead letters.

    What was asked before is still known by its request_id, but its answer is not.
    """
    key = {"b": bucket(member_id), "member": member_id}
    row = await _TOLD.fetch_one(connection, **key)
    told = Wallet(member_id) if row is None else to_wallet(row)
    await _ERASE_FACTS.execute(connection, **key)
    baskets = await _ERASE_BASKETS.execute(connection, **key)
    await _ERASE_ANSWERS.execute(connection, **key)
    events = await OUTBOX.erase(connection, member_id)
    received = await INBOX.of_member(connection, member_id)
    prefix = b"\x0a" + bytes([len(member_id)]) + member_id.encode()
    refused = await _ERASE_REFUSED.fetch(connection, prefix=prefix)
    await OUTBOX.erase_later(connection, received + refused)
    return Erased(baskets, len(told.facts) + bool(told.tier), events, len(refused))
