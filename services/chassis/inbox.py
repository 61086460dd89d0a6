"""Each event has its effect once: its key is written in the transaction of the effect."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import NamedTuple

import sqlalchemy as sa

from services.chassis.database import Connection, Insert, Row, Statement, rows_of
from services.chassis.ids import bucket


class InboxKey(NamedTuple):
    """Which event it was, for which consumer, and whose row it changes."""

    member_id: str
    consumer: str
    source: str
    event_id: str
    stream: str
    stream_seq: int
    """0 where the event is about another member: erasing this one leaves it in its stream."""


def inbox_table(metadata: sa.MetaData) -> sa.Table:
    """Kept 90 days; the stream sequence lets a brand's message be erased with its member."""
    return sa.Table(
        "inbox",
        metadata,
        sa.Column("bucket", sa.SmallInteger, primary_key=True),
        sa.Column("member_id", sa.Text, primary_key=True),
        sa.Column("consumer", sa.Text, primary_key=True),
        sa.Column("source", sa.Text, primary_key=True),
        sa.Column("event_id", sa.Text, primary_key=True),
        sa.Column("stream", sa.Text, nullable=False),
        sa.Column("stream_seq", sa.BigInteger, nullable=False),
        sa.Column("receive_time", sa.DateTime(timezone=True), nullable=False),
    )


class Inbox:
    """The inbox of one service. Both calls are made under the lock of the rows that the effect changes."""

    def __init__(self, table: sa.Table) -> None:
        given = rows_of(
            bucket=sa.SmallInteger, member_id=sa.Text, consumer=sa.Text, source=sa.Text, event_id=sa.Text
        )
        names = ("bucket", "member_id", "consumer", "source", "event_id")
        self._known = Statement(
            sa.select(*(table.c[name] for name in names[1:])).join_from(
                given, table, sa.and_(*(table.c[name] == given.c[name] for name in names))
            )
        )
        self._add = Insert(table, *names, "stream", "stream_seq", "receive_time")
        self._of_member = Statement(
            sa.select(table.c.stream, table.c.stream_seq, table.c.event_id).where(
                table.c.bucket == sa.bindparam("b"),
                table.c.member_id == sa.bindparam("member"),
                table.c.stream_seq > sa.literal_column("0"),
            )
        )

    async def known(self, connection: Connection, keys: Iterable[InboxKey]) -> set[tuple[str, ...]]:
        """Those of the keys that had their effect, as (member_id, consumer, source, event_id)."""
        rows = await self._known.fetch_rows(connection, [(bucket(key.member_id), *key[:4]) for key in keys])
        return {tuple(row) for row in rows}

    async def add(self, connection: Connection, keys: Iterable[InboxKey], at: datetime) -> None:
        """Remembers the events, `at` being wall time."""
        await self._add.rows(connection, [(bucket(key.member_id), *key, at) for key in keys])

    async def of_member(self, connection: Connection, member_id: str) -> list[Row]:
        """Stream, sequence and id of every event about the member that changed it."""
        return await self._of_member.fetch(connection, b=bucket(member_id), member=member_id)
