"""Erasing a member."""

from __future__ import annotations

from typing import Any, NamedTuple

import sqlalchemy as sa

from services.cards import tables as t
from services.cards.domain.wallet import Wallet
from services.cards.store.boxes import ANSWERS, DEAD_LETTERS, INBOX, OUTBOX
from services.cards.store.rows import to_wallet
from services.chassis.database import Connection, Statement
from services.chassis.erasure import forget
from services.chassis.ids import bucket
from services.chassis.statements import of_member

_NOTHING: sa.ColumnElement[bytes] = sa.literal_column("''::bytea")
_NO_FACTS: sa.ColumnElement[Any] = sa.literal_column("'{}'::jsonb")
_ERASE_BASKETS = Statement(
    sa.update(t.baskets).where(*of_member(t.baskets), t.baskets.c.body != _NOTHING).values(body=_NOTHING)
)
_TOLD = Statement(sa.select(t.members).where(*of_member(t.members)))
_ERASE_FACTS = Statement(
    sa.update(t.members).where(*of_member(t.members)).values(facts=_NO_FACTS, tier=sa.literal_column("''"))
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
    await ANSWERS.erase(connection, member_id)
    events, refused = await forget(connection, member_id, OUTBOX, INBOX, DEAD_LETTERS)
    return Erased(baskets, len(told.facts) + bool(told.tier), events, refused)
