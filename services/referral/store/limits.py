"""What holds members back: blocks that operators set, and codes that were tried in vain."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from services.chassis.database import Connection, Statement, insert_rows
from services.chassis.ids import bucket
from services.chassis.statements import By, Lookup, of_member
from services.referral import tables as t


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A member whom nobody is bound to, and whose rewards wait."""

    member_id: str
    campaign_id: str
    """Empty for all."""
    reason: str
    author: str
    create_time: datetime


def _block() -> Statement:
    values = {column.name: sa.bindparam(column.name, type_=column.type) for column in t.blocks.c}
    added = insert(t.blocks).values(values)
    return Statement(
        added.on_conflict_do_update(
            index_elements=list(t.blocks.primary_key.columns),
            set_={name: added.excluded[name] for name in t.CHANGING["blocks"]},
        )
    )


_BLOCK = _block()
_UNBLOCK = Statement(
    sa.delete(t.blocks).where(*of_member(t.blocks), t.blocks.c.campaign_id == sa.bindparam("campaign"))
)
_BLOCKS_OF = Statement(sa.select(t.blocks).where(*of_member(t.blocks)).order_by(t.blocks.c.campaign_id))


async def block(connection: Connection, block: Block) -> None:
    """Blocks a member; a block that there is already is set anew."""
    await _BLOCK.execute(
        connection,
        bucket=bucket(block.member_id),
        member_id=block.member_id,
        campaign_id=block.campaign_id,
        reason=block.reason,
        author=block.author,
        create_time=block.create_time,
    )


async def unblock(connection: Connection, member_id: str, campaign_id: str) -> bool:
    """Lifts a block; says whether there was one."""
    gone = await _UNBLOCK.execute(connection, b=bucket(member_id), member=member_id, campaign=campaign_id)
    return gone > 0


async def blocks_of(connection: Connection, member_id: str) -> list[Block]:
    """A member's blocks, by campaign; the one in all comes first."""
    rows = await _BLOCKS_OF.fetch(connection, b=bucket(member_id), member=member_id)
    names = ("member_id", "campaign_id", "reason", "author", "create_time")
    return [Block(**{name: row[name] for name in names}) for row in rows]


# --- codes that nobody has ----------------------------------------------------------------------------

Try = tuple[str, int]
"""A caller, and a minute of wall time since 1970."""


def _add_tries() -> Statement:
    """Counted up, since callers are not locked."""
    added = insert_rows(t.tries, "subject", "minute", "count")
    return Statement(
        added.on_conflict_do_update(
            index_elements=list(t.tries.primary_key.columns),
            set_={"count": t.tries.c["count"] + added.excluded["count"]},
        )
    )


_TRIES = Lookup(t.tries, named=By(("subject", "minute")))
_ADD_TRIES = _add_tries()
_DROP_TRIES = Statement(
    sa.delete(t.tries).where(t.tries.c.minute < sa.bindparam("before", type_=sa.BigInteger))
)


async def tries(connection: Connection, wanted: Collection[Try]) -> dict[Try, int]:
    """How many codes that nobody has were tried."""
    rows = await _TRIES.fetch(connection, named=wanted)
    return {(row["subject"], row["minute"]): row["count"] for row in rows}


async def add_tries(connection: Connection, more: Mapping[Try, int]) -> None:
    """Notes that so many more were tried."""
    await _ADD_TRIES.execute_rows(connection, sorted((*name, count) for name, count in more.items()))


async def drop_tries(connection: Connection, before: int) -> int:
    """Forgets what was tried in earlier minutes; returns how many."""
    return await _DROP_TRIES.execute(connection, before=before)
